import { beforeEach, describe, expect, test } from "vitest";
import { type ModelName, type RankId, rankIdOf, type WorkerId } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import { createMetrics } from "#service/metrics.ts";
import { EMPTY_FLEET, type FleetSnapshot, type Rank } from "../../control-plane/fleet/fleet.ts";
import type { ScaleTarget, TargetWorker } from "../../control-plane/scaling/scale-target.ts";
import { StartWatch } from "../../control-plane/scaling/start-watch.ts";
import { FakeClock } from "../support/fake-clock.ts";

const NANO = "nano" as ModelName;
let clock: FakeClock;
let workers: TargetWorker[];
let fleet: FleetSnapshot;
let wanted: number;
let watch: StartWatch;

function worker(name: string, runs = true, role: Role = "decode"): TargetWorker {
  const workerId = name as WorkerId;
  return {
    workerId,
    model: NANO,
    role,
    ranks: [{ rankId: rankIdOf(workerId, 0), instance: "1" }],
    stopping: false,
    runs,
  };
}

function heard(states: Readonly<Record<string, Rank["state"]>>): void {
  const ranks = Object.entries(states).map(([name, state]) => {
    const rankId = rankIdOf(name as WorkerId, 0);
    return [rankId, { rankId, state } as Rank] as const satisfies readonly [RankId, Rank];
  });
  fleet = { ...EMPTY_FLEET, ranks: new Map(ranks) };
}

const decode = () => watch.outlook(NANO).find(({ role }) => role === "decode")!;

beforeEach(() => {
  clock = new FakeClock();
  workers = [];
  fleet = EMPTY_FLEET;
  wanted = 1;
  const target = { workers: () => workers, wanted: () => wanted } as unknown as ScaleTarget;
  const metrics = createMetrics({ processMetrics: false });
  watch = new StartWatch({ clock, metrics, target, snapshot: () => fleet });
  watch.start();
});

describe("what a start looks like from outside", () => {
  test("asked for, placed, loading, joining, ready: and the next one by the length of the first", async () => {
    expect(decode()).toMatchObject({ wanted: 1, started: 0, ready: 0, phase: "scheduling", share: null, leftMs: null });
    workers = [worker("a", false)];
    await clock.advance(400);
    expect(decode()).toMatchObject({ started: 0, phase: "scheduling" });
    workers = [worker("a")];
    await clock.advance(600);
    expect(decode()).toMatchObject({ started: 1, phase: "loading", share: null });
    heard({ a: "loading" });
    await clock.advance(1_000);
    expect(decode().phase).toBe("joining");
    heard({ a: "ready" });
    await clock.advance(200);
    expect(decode()).toMatchObject({ ready: 1, phase: "ready" });
    expect(watch.usualMs(NANO, "decode")).toBeGreaterThanOrEqual(1_800);
    expect(watch.usualMs(NANO, "prefill")).toBeNull();

    wanted = 2;
    workers = [worker("a"), worker("b")];
    await clock.advance(1_000);
    const next = decode();
    expect(next).toMatchObject({ wanted: 2, started: 2, ready: 1, phase: "loading" });
    expect(next.share).toBeGreaterThan(0.3);
    expect(next.share).toBeLessThan(0.7);
    await clock.advance(60_000);
    expect(decode()).toMatchObject({ share: 0.99, leftMs: 0 });
  });

  test("workers that were there before tell nothing of starts, and one lost is not starting again", async () => {
    workers = [worker("a")];
    heard({ a: "ready" });
    await clock.advance(1_000);
    heard({ a: "lost" });
    await clock.advance(1_000);
    heard({ a: "ready" });
    await clock.advance(1_000);
    expect(watch.usualMs(NANO, "decode")).toBeNull();
    expect(decode()).toMatchObject({ ready: 1, phase: "ready" });
  });

  test("the usual time is that of the latest starts, whatever one of them took", async () => {
    for (let i = 0; i < 7; i++) {
      workers = [worker(`w${i}`)];
      await clock.advance(i === 3 ? 60_000 : 2_000);
      heard({ [`w${i}`]: "ready" });
      await clock.advance(200);
    }
    expect(watch.usualMs(NANO, "decode")).toBeLessThan(2_600);
  });
});
