import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { RankId } from "#protocol/ids.ts";
import { systemClock } from "#service/clock.ts";
import { FakeGateway } from "../support/fake-gateway.ts";
import { generationOf, promptOf } from "../support/generation.ts";
import { NatsServer } from "../support/nats-server.ts";
import { waitFor } from "../support/system.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

interface RankProcess {
  readonly child: ChildProcess;
  readonly rankId: RankId;
  readonly epoch: number;
  readonly healthUrl: string;
  readonly log: () => string;
}

let nats: NatsServer;
let gateway: FakeGateway;
let stateFolder: string;
const children: ChildProcess[] = [];

beforeAll(async () => {
  nats = await NatsServer.start();
  stateFolder = await mkdtemp(join(tmpdir(), "margay-nodes-"));
  gateway = new FakeGateway(await nats.connect("control-plane"), systemClock);
});

afterAll(async () => {
  for (const child of children) child.kill("SIGKILL");
  gateway.die();
  await gateway.bus.close(1_000);
  await nats[Symbol.asyncDispose]();
  await rm(stateFolder, { recursive: true, force: true });
});

async function startRank(role: "prefill" | "decode", name: string): Promise<RankProcess> {
  let log = "";
  const child = spawn(process.execPath, [`${role}-node/main.ts`], {
    cwd: root,
    env: {
      PATH: process.env.PATH,
      MARGAY_MODEL: "models/nano",
      MARGAY_STATE_DIR: stateFolder,
      MARGAY_WORKER_ID: name,
      MARGAY_BACKEND: "ref",
      MARGAY_THREADS: "1",
      MARGAY_KV_MIB: "32",
      MARGAY_NATS_URL: nats.url,
      MARGAY_NATS_USER: role,
      MARGAY_NATS_PASSWORD: nats.credentials[role],
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  children.push(child);
  child.stderr?.on("data", (bytes: Buffer) => (log += bytes.toString()));
  const beat = await waitFor(
    `${name} to be ready`,
    () => {
      if (child.exitCode !== null) throw new Error(`${name} ended with code ${child.exitCode}: ${log}`);
      const last = gateway.beats.findLast((one) => one.rankId === `${name}-r0`);
      return last?.kind === "heartbeat" && last.state === "ready" ? last : null;
    },
    60_000,
    () => log,
  );
  return { child, rankId: beat.rankId, epoch: beat.epoch, healthUrl: beat.healthUrl, log: () => log };
}

async function metric(rank: RankProcess, series: string): Promise<number> {
  const text = await (await fetch(`${rank.healthUrl}/metrics`)).text();
  const line = text.split("\n").find((one) => one.startsWith(`${series} `));
  return line === undefined ? 0 : Number(line.slice(series.length + 1));
}

test("two processes move real pages and generate what one alone generates; both end cleanly when asked", async () => {
  const [p, d] = [await startRank("prefill", "p1"), await startRank("decode", "d1")];
  expect((await fetch(`${p.healthUrl}/readyz`)).status).toBe(200);
  expect((await fetch(`${d.healthUrl}/livez`)).status).toBe(200);
  const generation = generationOf(promptOf(200), { maxNewTokens: 40, sampling: { minNewTokens: 40 } });

  const head = gateway.head();
  const reserved = await gateway.reserve(d.rankId, d.epoch, head, generation);
  if (reserved.kind !== "reserved") throw new Error(`${reserved.code} ${d.log()}`);
  const { reservation } = reserved;
  const accepted = await gateway.prefill(p.rankId, p.epoch, head, generation, reservation);
  expect(accepted).toEqual({ kind: "prefill-accepted", cachedTokens: 0 });
  const outcome = await waitFor("the first token", () => gateway.outcomesOf(head)[0] ?? null, 20_000, p.log);
  if (outcome.kind !== "prefill-done") throw new Error(`${outcome.code} ${outcome.detail}`);
  const started = await gateway.start(reservation, head, outcome.firstToken);
  expect(started).toMatchObject({ kind: "started" });
  const moved = gateway.stream(head.requestId);
  await waitFor("the stream's end", () => moved.done, 20_000, d.log);
  expect(moved.done).toMatchObject({ finish: "length", computedTokens: 0 });
  expect(await metric(d, 'margay_prefill_tokens_total{role="decode"}')).toBe(0);
  expect(await metric(d, 'margay_kv_transfer_bytes_total{role="decode",direction="received"}')).toBeGreaterThan(0);

  // The other rank has nothing of this prompt in its cache and computes all of it.
  const other = await startRank("decode", "d2");
  const alone = gateway.head();
  const second = await gateway.reserve(other.rankId, other.epoch, alone, generation);
  if (second.kind !== "reserved") throw new Error(second.code);
  await gateway.start(second.reservation, alone, null);
  const local = gateway.stream(alone.requestId);
  await waitFor("the local stream's end", () => local.done, 20_000, other.log);
  expect(local.done).toMatchObject({ finish: "length", computedTokens: 200 });
  expect([outcome.firstToken, ...moved.tokens]).toEqual(local.tokens);

  for (const rank of [p, d, other]) {
    const role = rank === p ? "prefill" : "decode";
    await waitFor(
      "the pool to hold nothing",
      async () => {
        const states = ["reserved", "filling", "receiving", "sealed", "sending", "attached"];
        const counts = states.map((state) => metric(rank, `margay_kv_pages{role="${role}",state="${state}"}`));
        return (await Promise.all(counts)).every((count) => count === 0) ? true : null;
      },
      15_000,
    );
    rank.child.kill("SIGTERM");
    const [code] = await once(rank.child, "exit");
    expect(code, rank.log()).toBe(0);
    const saidGoodbye = () => gateway.beats.findLast((one) => one.rankId === rank.rankId)?.kind === "goodbye";
    await waitFor("a goodbye", () => (saidGoodbye() ? true : null), 3_000, rank.log);
  }
});
