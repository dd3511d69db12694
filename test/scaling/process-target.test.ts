import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type ModelName, type RankId, rankIdOf } from "#protocol/ids.ts";
import { type Logger, silentLogger } from "#service/logger.ts";
import { createMetrics } from "#service/metrics.ts";
import { ProcessTarget } from "../../control-plane/scaling/targets/process.ts";
import { FakeClock, fakeRandom } from "../support/fake-clock.ts";
import { eventually } from "../support/gateway-harness.ts";

/** Real processes that do nothing, under virtual time. */

const NANO = "nano" as ModelName;
const program = fileURLToPath(new URL("../fixtures/fake-worker.mjs", import.meta.url));

let folder: string;
let clock: FakeClock;
let target: ProcessTarget;
let ended: RankId[];
let said: { readonly pid: number; readonly message: string; readonly reason: unknown }[];
let metrics: ReturnType<typeof createMetrics>;

function open(mode: "well" | "broken" | "stubborn", ranks = 1): void {
  clock = new FakeClock();
  ended = [];
  said = [];
  metrics = createMetrics({ processMetrics: false });
  const say = (fields: Readonly<Record<string, unknown>>, message: string) =>
    void said.push({ pid: fields.pid as number, message, reason: fields.reason });
  const logger: Logger = { ...silentLogger, info: say, warn: say, error: say };
  target = new ProcessTarget({
    ...{ clock, logger, metrics },
    random: fakeRandom(3),
    folders: new Map([[NANO, "/models/nano"]]),
    environment: { PATH: process.env.PATH ?? "", FAKE_WORKER: mode, FAKE_FOLDER: folder, MARGAY_SLOTS: "4" },
    roleEnvironment: { prefill: { MARGAY_NATS_USER: "prefill" }, decode: { MARGAY_NATS_USER: "decode" } },
    drainMs: 5_000,
    programs: { prefill: program, decode: program },
    ranks: { prefill: 1, decode: ranks },
    onEnd: (rankId) => void ended.push(rankId),
  });
}

const notes = (what: string) => readdirSync(folder).filter((file) => file.endsWith(`.${what}`));
const began = (count: number) => eventually(() => notes("began").length >= count, 15_000);
const pids = () => said.filter(({ message }) => message === "starting a worker").map(({ pid }) => pid);
const alive = (pid: number) =>
  existsSync(`/proc/${pid}/cmdline`) && readFileSync(`/proc/${pid}/cmdline`, "utf8") !== "";

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "margay-target-"));
});
afterEach(async () => {
  const closed = target.close(0);
  await clock.advance(10_000);
  await closed;
  expect(pids().filter(alive)).toEqual([]);
  rmSync(folder, { recursive: true, force: true });
});

describe("a worker's process", () => {
  test("is given its name, model, role's user and settings, and nothing else of our environment", async () => {
    process.env.SECRET_OF_THE_PARENT = "x";
    open("well");
    target.scale(NANO, "prefill", 1);
    await began(1);
    delete process.env.SECRET_OF_THE_PARENT;
    const [worker] = target.workers();
    expect(worker!.workerId).toMatch(/^prefill-1-[0-9a-f]{6}$/);
    const given = JSON.parse(readFileSync(join(folder, `${worker!.workerId}-r0.began`), "utf8")) as Record<
      string,
      string
    >;
    expect(given).toMatchObject({
      MARGAY_MODEL: "/models/nano",
      MARGAY_MODEL_NAME: "nano",
      MARGAY_NATS_USER: "prefill",
      MARGAY_SLOTS: "4",
    });
    expect(given).not.toHaveProperty("SECRET_OF_THE_PARENT");
    expect(given).not.toHaveProperty("HOME");
  });

  test("is asked to end when it is not wanted any more, and its end is told", async () => {
    open("well");
    target.scale(NANO, "decode", 2);
    await began(2);
    const [first, second] = target.workers().map((worker) => worker.workerId);
    target.scale(NANO, "decode", 1);
    await eventually(() => ended.length === 1);
    expect(ended).toEqual([rankIdOf(second!, 0)]);
    expect(target.workers().map((worker) => worker.workerId)).toEqual([first]);
    expect(notes("asked")).toEqual([`${second}-r0.asked`]);
    expect(await metrics.text()).not.toContain("margay_worker_restarts_total{");
  });

  test("is killed when it does not end in its time", async () => {
    open("stubborn");
    target.scale(NANO, "decode", 1);
    await began(1);
    target.scale(NANO, "decode", 0);
    await eventually(() => notes("asked").length === 1);
    await clock.advance(5_000);
    expect(ended).toEqual([]);
    await clock.advance(4_000);
    await eventually(() => ended.length === 1);
  });
});

describe("a worker of several ranks", () => {
  test("has a process for each, that knows its number", async () => {
    open("well", 3);
    target.scale(NANO, "decode", 1);
    await began(3);
    const [worker] = target.workers();
    expect(worker!.ranks.map(({ rankId }) => rankId)).toEqual(
      [0, 1, 2].map((rank) => rankIdOf(worker!.workerId, rank)),
    );
    const numbers = worker!.ranks.map(({ rankId }) => {
      const given = JSON.parse(readFileSync(join(folder, `${rankId}.began`), "utf8")) as Record<string, string>;
      return [given.MARGAY_WORKER_ID, given.MARGAY_RANK, given.MARGAY_RANKS];
    });
    expect(numbers).toEqual([0, 1, 2].map((rank) => [worker!.workerId, String(rank), "3"]));
    target.scale(NANO, "decode", 0);
    await eventually(() => ended.length === 3);
    expect(notes("asked")).toHaveLength(3);
    expect(target.workers()).toEqual([]);
  });

  test("gets a rank that crashed back in its place while the others live (L4)", async () => {
    open("well", 2);
    target.scale(NANO, "decode", 1);
    await began(2);
    const before = target.workers()[0]!;
    const [first, second] = before.ranks.map(({ instance }) => instance);
    process.kill(Number(second), "SIGKILL");
    await eventually(() => ended.length === 1);
    expect(ended).toEqual([before.ranks[1]!.rankId]);
    await clock.advance(100);
    await eventually(() => pids().length === 3);
    target.scale(NANO, "decode", 1);
    expect(target.workers()).toHaveLength(1);
    const after = target.workers()[0]!;
    expect(after.ranks.map(({ rankId }) => rankId)).toEqual(before.ranks.map(({ rankId }) => rankId));
    expect(after.ranks[0]!.instance).toBe(first);
    expect(after.ranks[1]!.instance).not.toBe(second);
    target.replace(after.workerId, after.ranks[0]!.rankId);
    await eventually(() => ended.length === 2);
    expect(ended[1]).toBe(after.ranks[0]!.rankId);
  });

  test("is gone with its last rank, and another takes its place", async () => {
    open("well", 2);
    target.scale(NANO, "decode", 1);
    await began(2);
    const [worker] = target.workers();
    for (const { instance } of worker!.ranks) process.kill(Number(instance), "SIGKILL");
    await eventually(() => target.workers().length === 0);
    await clock.advance(60_000);
    expect(pids()).toHaveLength(2);
    target.scale(NANO, "decode", 1);
    expect(target.workers()[0]!.workerId).not.toBe(worker!.workerId);
  });
});

describe("a crash", () => {
  test("is said, counted, and answered by another worker at once the first time", async () => {
    open("well");
    target.scale(NANO, "decode", 1);
    await began(1);
    process.kill(pids()[0]!, "SIGKILL");
    await eventually(() => ended.length === 1);
    expect(said.map(({ message }) => message)).toContain("a worker was ended by SIGKILL; starting another");
    expect(await metrics.text()).toContain('margay_worker_restarts_total{role="decode"} 1');
    target.scale(NANO, "decode", 1);
    await began(2);
    expect(target.workers()).toHaveLength(1);
    expect(target.workers()[0]!.ranks[0]!.rankId).not.toBe(ended[0]);
  });

  test("at every start is answered ever more slowly, with the cause at hand; not at all when nobody is wanted", async () => {
    open("broken");
    const starts: number[] = [];
    const startedMs = clock.monotonic();
    while (clock.monotonic() - startedMs < 60_000) {
      const before = pids().length;
      target.scale(NANO, "decode", 1);
      if (pids().length > before) {
        starts.push(clock.monotonic());
        const count = ended.length;
        await eventually(() => ended.length > count, 15_000);
      }
      await clock.advance(100);
    }
    expect(starts.length).toBeGreaterThan(4);
    expect(starts.length).toBeLessThan(15);
    expect(starts.at(-1)! - starts.at(-2)!).toBeGreaterThan(5_000);
    expect(target.lastFailure(NANO)).toEqual({ sentence: "decode worker: config.json is not there", mayPass: false });
    expect(said.some(({ reason }) => reason === "config.json is not there")).toBe(true);
    const count = pids().length;
    target.scale(NANO, "decode", 0);
    await clock.advance(60_000);
    target.scale(NANO, "decode", 0);
    expect(pids().length).toBe(count);
  });
});
