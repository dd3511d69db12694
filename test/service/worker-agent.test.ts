import { afterEach, beforeEach, expect, test } from "vitest";
import { z } from "zod";
import type { Bus } from "#protocol/bus/bus.ts";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import { MargayError } from "#protocol/errors.ts";
import type { GatewayId, ModelName, RankId, WorkerId } from "#protocol/ids.ts";
import { KvEvents, KvMissed, KvMissedReply } from "#protocol/kv.ts";
import { DrainReply } from "#protocol/prefill.ts";
import { CONTROL_PLANE_QUEUE, subjects } from "#protocol/subjects.ts";
import {
  Drain,
  GatewayBeat,
  Goodbye,
  HEARTBEAT_MS,
  Heartbeat,
  Hello,
  NO_RANK_WORK,
  Refused,
  Welcome,
} from "#protocol/worker.ts";
import { silentLogger } from "#service/logger.ts";
import { type AgentHost, WorkerAgent } from "#service/worker-agent.ts";
import { FakeClock, fakeRandom } from "../support/fake-clock.ts";
import { freeBlocks } from "../support/fleet-of.ts";

const rankId = "w1-r0" as RankId;
const gatewayId = "g1" as GatewayId;
const HelloReply = z.discriminatedUnion("kind", [Welcome, Refused]);
const Beat = z.discriminatedUnion("kind", [Heartbeat, Goodbye]);

const identity = {
  workerId: "w1" as WorkerId,
  rankId,
  rank: 0,
  ranks: 1,
  role: "decode" as const,
  model: {
    name: "nano" as ModelName,
    modelHash: "abc",
    layout: "bf16",
    numerics: "plain",
    vocabSize: 100,
    contextLength: 1000,
    attentions: 4,
    pageBytes: 4096,
  },
  kvEndpoint: { host: "127.0.0.1", port: 7000, hostKey: "here" },
  exchange: null,
  experts: 0,
  healthUrl: "http://127.0.0.1:1",
  pid: 42,
};

let clock: FakeClock;
let network: MemoryNetwork;
let bus: Bus;
let control: Bus;
let agent: WorkerAgent;
let beats: z.infer<typeof Beat>[];
let drains: number[];
let silent: GatewayId[];
let requests: number;
const abort = new AbortController();

beforeEach(async () => {
  clock = new FakeClock();
  network = new MemoryNetwork(clock, fakeRandom());
  bus = network.connect("decode");
  control = network.connect("control-plane");
  beats = [];
  drains = [];
  silent = [];
  requests = 0;
  control.subscribe(subjects.beats(), Beat, (beat) => void beats.push(beat));
  const host: AgentHost = {
    load: () => ({
      requests,
      maxRequests: 64,
      pendingPrefillTokens: 0,
      prefillTokensPerSecond: 0,
      blocksTotal: 10,
      blocksAvailable: 10,
      blocks: freeBlocks(10),
      kvBytesMoved: 0,
      work: NO_RANK_WORK,
    }),
    prefixHashes: () => Uint8Array.of(1, 2, 3),
    onDrain: (deadlineMs) => void drains.push(deadlineMs),
    onOwnerSilent: (owner) => void silent.push(owner),
  };
  agent = new WorkerAgent({ bus, clock, random: fakeRandom(), logger: silentLogger, identity, host });
});

afterEach(() => agent.leave());

function welcome(epoch = 7) {
  const hellos: Hello[] = [];
  control.respond(
    subjects.hello(),
    Hello,
    HelloReply,
    (hello) => {
      hellos.push(hello);
      return { kind: "welcome" as const, epoch, gatewayId };
    },
    CONTROL_PLANE_QUEUE,
  );
  return hellos;
}

async function introduced() {
  welcome();
  await agent.introduce(abort.signal);
  agent.begin();
  agent.setState("ready");
  await clock.settle();
}

test("hello gives the epoch, and names rank, role and clock", async () => {
  const hellos = welcome(7);
  expect(await agent.introduce(abort.signal)).toBe(7);
  const { workerId, rank, ranks, role, model, experts } = identity;
  const clockMs = clock.now();
  expect(hellos).toEqual([{ kind: "hello", workerId, rankId, rank, ranks, role, model, experts, clockMs }]);
  expect(agent.epoch).toBe(7);
});

test("a rank that starts before the control plane, or in an outage, waits and is welcomed later", async () => {
  const introducing = agent.introduce(abort.signal);
  await clock.advance(30_000);
  network.stop();
  await clock.advance(30_000);
  network.start();
  welcome(3);
  await clock.advance(2_000);
  expect(await introducing).toBe(3);
});

test("a control plane that refuses for now is asked again", async () => {
  let asked = 0;
  control.respond(subjects.hello(), Hello, HelloReply, () => {
    if (++asked < 4) throw new MargayError("shutting_down");
    return { kind: "welcome" as const, epoch: 5, gatewayId };
  });
  const introducing = agent.introduce(abort.signal);
  await clock.advance(10_000);
  expect(await introducing).toBe(5);
  expect(asked).toBe(4);
});

test("a refusal for good, as for a wrong clock, ends the start with its sentence", async () => {
  control.respond(subjects.hello(), Hello, HelloReply, () => {
    throw new MargayError("incompatible", "the clock of w1-r0 is 5000 ms off");
  });
  await expect(agent.introduce(abort.signal)).rejects.toThrow(
    "The control plane refuses this worker: the clock of w1-r0 is 5000 ms off",
  );
});

test("one that lacks a partner is put off, and gives up only after two minutes", async () => {
  const detail = "KV cannot pass between w1-r0 and p1-r0";
  let asked = 0;
  let joins = false;
  control.respond(subjects.hello(), Hello, HelloReply, () => {
    asked++;
    if (joins) return { kind: "welcome" as const, epoch: 9, gatewayId };
    return { kind: "refused" as const, code: "incompatible" as const, detail, retryAfterMs: 1_000 };
  });
  const introducing = agent.introduce(abort.signal);
  await clock.advance(100_000);
  expect(asked).toBeGreaterThan(40);
  joins = true;
  await clock.advance(3_000);
  expect(await introducing).toBe(9);
  joins = false;
  const refused = expect(agent.introduce(abort.signal)).rejects.toThrow(detail);
  await clock.advance(125_000);
  await refused;
});

test("the wait for a control plane ends with the process", async () => {
  const stop = new AbortController();
  const introducing = agent.introduce(stop.signal);
  await clock.advance(5_000);
  stop.abort(new Error("stopping"));
  await expect(introducing).rejects.toThrow("stopping");
});

test("nothing is published before the epoch is known (1)", async () => {
  agent.publishKv({ stored: Uint8Array.of(1), removed: new Uint8Array() });
  const events: KvEvents[] = [];
  control.subscribe(subjects.allKvEvents(), KvEvents, (event) => void events.push(event));
  await clock.advance(5_000);
  expect(beats).toEqual([]);
  expect(events).toEqual([]);
});

test("heartbeats go out at their interval and at once on a change of state (2)", async () => {
  await introduced();
  expect(beats.map((beat) => beat.kind === "heartbeat" && beat.state)).toEqual(["loading", "ready"]);
  beats = [];
  requests = 3;
  await clock.advance(10 * HEARTBEAT_MS);
  expect(beats).toHaveLength(10);
  expect(beats[9]).toMatchObject({
    kind: "heartbeat",
    ...identity,
    epoch: 7,
    seq: 11,
    kvSeq: -1,
    clockMs: clock.now(),
    load: { requests: 3 },
  });
  beats = [];
  agent.setState("draining");
  agent.setState("draining");
  await clock.settle();
  expect(beats).toMatchObject([{ state: "draining" }]);
});

test("when the bus comes back the rank announces itself at once (2)", async () => {
  await introduced();
  network.stop();
  await clock.advance(1_200);
  beats = [];
  network.reconnect(control);
  network.reconnect(bus);
  await clock.settle();
  expect(beats).toMatchObject([{ kind: "heartbeat", state: "ready" }]);
});

test("KV events are numbered without gaps; what was missed of them is told again, all there is to others (3)", async () => {
  await introduced();
  const events: KvEvents[] = [];
  control.subscribe(subjects.allKvEvents(), KvEvents, (event) => void events.push(event));
  agent.publishKv({ stored: Uint8Array.of(1), removed: Uint8Array.of() });
  agent.publishKv({ stored: new Uint8Array(), removed: new Uint8Array() });
  network.disconnect(bus);
  agent.publishKv({ stored: Uint8Array.of(2), removed: Uint8Array.of() });
  network.reconnect(bus);
  agent.publishKv({ stored: Uint8Array.of(3), removed: Uint8Array.of(1) });
  await clock.settle();
  expect(events.map(({ seq }) => seq)).toEqual([0, 2]);
  expect(events[1]).toEqual({
    kind: "kv-events",
    rankId,
    epoch: 7,
    seq: 2,
    stored: Uint8Array.of(3),
    removed: Uint8Array.of(1),
  });
  const ask = (epoch: number, seq: number) =>
    control.request(subjects.kvMissed(rankId), KvMissed, { kind: "kv-missed", epoch, seq }, KvMissedReply, 1000);
  const changes = [1, 2, 3].map((hash) => ({
    stored: Uint8Array.of(hash),
    removed: hash === 3 ? Uint8Array.of(1) : new Uint8Array(),
  }));
  const rank = { rankId, epoch: 7 };
  expect(await ask(7, -1)).toEqual({ kind: "kv-replay", ...rank, seq: 0, changes });
  expect(await ask(7, 0)).toEqual({ kind: "kv-replay", ...rank, seq: 1, changes: changes.slice(1) });
  expect(await ask(7, 2)).toEqual({ kind: "kv-replay", ...rank, seq: 3, changes: [] });
  const snapshot = { kind: "kv-snapshot", ...rank, seq: 2, hashes: Uint8Array.of(1, 2, 3) };
  expect(await ask(6, 0)).toEqual(snapshot);
  expect(await ask(7, 9)).toEqual(snapshot);
});

test("a drain is answered and handed to the node", async () => {
  await introduced();
  const drain = { kind: "drain" as const, deadlineMs: clock.now() + 9_000 };
  expect(await control.request(subjects.drain(rankId), Drain, drain, DrainReply, 1000)).toEqual({ kind: "done" });
  expect(drains).toEqual([drain.deadlineMs]);
});

test("an owner that falls silent is reported once; one that beats is not", async () => {
  await introduced();
  const other = "g2" as GatewayId;
  expect(agent.isOwnerAlive(other)).toBe(true);
  for (let second = 0; second < 20; second++) {
    control.publish(subjects.gatewayBeat(gatewayId), GatewayBeat, {
      kind: "gateway-beat",
      gatewayId,
      clockMs: clock.now(),
    });
    await clock.advance(1_000);
  }
  expect(silent).toEqual([other]);
  expect(agent.isOwnerAlive(gatewayId)).toBe(true);
});

test("an outage of the bus is nobody's silence", async () => {
  await introduced();
  network.disconnect(bus);
  await clock.advance(120_000);
  expect(silent).toEqual([]);
  expect(agent.isOwnerAlive(gatewayId)).toBe(true);
  network.reconnect(bus);
  await clock.advance(14_000);
  expect(silent).toEqual([]);
  await clock.advance(3_000);
  expect(silent).toEqual([gatewayId]);
});

test("goodbye is the last word (4)", async () => {
  await introduced();
  beats = [];
  await agent.leave();
  await agent.leave();
  agent.publishKv({ stored: Uint8Array.of(1), removed: new Uint8Array() });
  agent.setState("draining");
  await clock.advance(5_000);
  expect(beats).toEqual([{ kind: "goodbye", rankId, epoch: 7 }]);
  expect(clock.pending).toBe(0);
});
