import { afterEach, beforeEach, expect, test } from "vitest";
import { FakeGateway } from "../support/fake-gateway.ts";
import { generationOf, promptOf } from "../support/generation.ts";
import { NodeWorld, refused, simTokens } from "../support/node-world.ts";

let world: NodeWorld;

beforeEach(() => {
  world = new NodeWorld();
});
afterEach(async () => {
  await world.close();
});

test("requests of a silent owner end in every phase; those of a living one go on", async () => {
  const d = await world.decode({ model: { stepMs: 1_000 } });
  const other = new FakeGateway(world.network.connect(), world.clock, "gw2");
  await world.clock.advance(2_000);
  const orphan = { ...world.gateway.head(0, "orphan"), owner: other.id };
  const waiting = { ...world.gateway.head(0, "waiting"), owner: other.id };
  const kept = world.gateway.head();
  await world.serveLocally(d, orphan, generationOf(promptOf(50), { maxNewTokens: 60 }));
  await world.serveLocally(d, kept, generationOf(promptOf(50), { maxNewTokens: 30 }));
  await world.reserve(d, waiting, generationOf(promptOf(50)), world.clock.now() + 60_000);
  other.die();
  await world.clock.advance(20_000);
  expect(d.engine.stats().sequences).toBe(1);
  expect(await d.metric('margay_orphans_total{role="decode"}')).toBe(2);
  await world.until(() => world.gateway.stream(kept.requestId).done !== null, 40_000);
  expect(world.gateway.stream(kept.requestId).tokens).toHaveLength(30);
});

test("an outage of the bus silences owners without killing their requests", async () => {
  const d = await world.decode({ model: { stepMs: 1_000 } });
  const head = world.gateway.head();
  const generation = generationOf(promptOf(50), { maxNewTokens: 60 });
  await world.serveLocally(d, head, generation);
  world.network.disconnect(d.bus);
  await world.clock.advance(40_000);
  world.network.reconnect(d.bus);
  await world.clock.advance(2_000);
  const resumed = await world.settle(world.gateway.resume(d.rankId, head, 0));
  if (resumed.kind !== "resumed") throw new Error(resumed.code);
  expect(resumed.chunk.tokens.length).toBeGreaterThan(35);
  await world.until(() => world.gateway.stream(head.requestId).done !== null);
});

test("a draining rank lets streams end inside the grace period and hands the others back", async () => {
  const d = await world.decode({ model: { stepMs: 10 } });
  const [short, long, waiting, fresh] = [
    world.gateway.head(),
    world.gateway.head(),
    world.gateway.head(),
    world.gateway.head(),
  ];
  await world.serveLocally(d, short, generationOf(promptOf(30), { maxNewTokens: 20 }));
  await world.serveLocally(d, long, generationOf(promptOf(30, 2), { maxNewTokens: 900 }));
  const reservation = await world.reserve(d, waiting, generationOf(promptOf(30, 3)));
  const start = world.gateway.start(reservation, waiting, 100, world.clock.now() + 8_000);
  const deadlineMs = world.clock.now() + 2_000;
  await world.settle(world.gateway.drain(d.rankId, deadlineMs));
  expect(d.stops).toHaveLength(1);
  const drained = d.node.drain(deadlineMs);
  await world.clock.advance(5);
  const refusal = await world.settle(world.gateway.reserve(d.rankId, d.epoch, fresh, generationOf(promptOf(30))));
  expect(refusal).toEqual(refused("draining"));
  await world.settle(drained);
  expect(await world.settle(start)).toEqual(refused("draining"));
  await world.clock.advance(1);
  expect(world.gateway.stream(short.requestId)).toMatchObject({ done: { finish: "length" } });
  const handedBack = world.gateway.stream(long.requestId);
  expect(handedBack.done).toMatchObject({ finish: null, error: "draining" });
  expect(handedBack.tokens).toEqual(simTokens(generationOf(promptOf(30, 2)), 0, handedBack.tokens.length));
  expect(world.clock.now()).toBeLessThanOrEqual(deadlineMs + 1_000);
  expect(d.held()).toBe(0);
  await world.settle(d.node[Symbol.asyncDispose]());
  await world.clock.advance(5);
  expect(world.gateway.beats.findLast((beat) => beat.rankId === d.rankId)).toMatchObject({ kind: "goodbye" });
});

test("heartbeats tell where KV is taken and how much room there is", async () => {
  const d = await world.decode({ kvBlocks: 32 });
  const head = world.gateway.head();
  await world.reserve(d, head, generationOf(promptOf(200), { maxNewTokens: 56 }));
  await world.clock.advance(600);
  const beat = world.gateway.beats.findLast((one) => one.rankId === d.rankId)!;
  expect(beat).toMatchObject({ role: "decode", state: "ready", kvEndpoint: { port: d.engine.info.kvPort } });
  if (beat.kind === "heartbeat") expect(beat.load).toMatchObject({ requests: 1, blocksTotal: 32, blocksAvailable: 28 });
  expect(await d.metric('margay_kv_pages{role="decode",state="reserved"}')).toBe(4);
  expect(await d.metric('margay_worker_requests{role="decode"}')).toBe(1);
  await world.settle(world.gateway.cancel(d.rankId, head));
});

test("three hundred requests with random ends leave no block, slot or stream behind", async () => {
  const p = await world.prefill({ slots: 16, kvBlocks: 96 });
  const d = await world.decode({ slots: 16, kvBlocks: 96 });
  let state = 7;
  const below = (limit: number) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return (state >> 8) % limit;
  };
  world.fabric.fault = () => (below(40) === 0 ? "lose" : below(60) === 0 ? "checksum" : "deliver");
  const outcomes = { finished: 0, cancelled: 0, failed: 0 };
  const one = async (index: number): Promise<keyof typeof outcomes> => {
    const head = world.gateway.head(0, `storm${index}`);
    const generation = generationOf(promptOf(1 + below(260), below(5)), { maxNewTokens: 2 + below(60) });
    const cancelAt = below(3) === 0 ? below(5) : -1;
    const giveUp = async (how: keyof typeof outcomes) => {
      await Promise.all([p, d].map((rank) => world.gateway.cancel(rank.rankId, head)));
      return how;
    };
    const reserved = await world.gateway.reserve(d.rankId, d.epoch, head, generation);
    if (reserved.kind === "refused") return giveUp("failed");
    if (cancelAt === 0) return giveUp("cancelled");
    let firstToken: number | null = null;
    if (below(4) > 0) {
      const { reservation } = reserved;
      const accepted = await world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation);
      if (accepted.kind === "refused") return giveUp("failed");
      if (cancelAt === 1) return giveUp("cancelled");
      while (world.gateway.outcomesOf(head).length === 0) await world.clock.sleep(1);
      const outcome = world.gateway.outcomesOf(head)[0]!;
      if (outcome.kind === "prefill-failed") return giveUp("failed");
      firstToken = outcome.firstToken;
    }
    const start = world.gateway.start(reserved.reservation, head, firstToken, world.clock.now() + 500);
    if (cancelAt === 2) return giveUp("cancelled");
    if ((await start).kind === "refused") return giveUp("failed");
    if (cancelAt > 2) {
      await world.clock.sleep(below(40));
      return giveUp("cancelled");
    }
    while (world.gateway.stream(head.requestId).done === null) await world.clock.sleep(1);
    const wanted = simTokens(generation, firstToken === null ? 0 : 1, generation.maxNewTokens);
    expect(world.gateway.stream(head.requestId).tokens).toEqual(wanted);
    return "finished";
  };
  const client = async (from: number) => {
    for (let i = 0; i < 25; i++) outcomes[await one(from + i)]++;
  };
  await world.settle(Promise.all(Array.from({ length: 12 }, (_, i) => client(i * 25))), 120_000);
  expect(outcomes.finished + outcomes.cancelled + outcomes.failed).toBe(300);
  expect(outcomes.finished).toBeGreaterThan(100);
  expect(outcomes.cancelled).toBeGreaterThan(30);
  expect(outcomes.failed).toBeGreaterThan(10);
  await world.clock.advance(11_000);
});
