import { afterEach, beforeEach, expect, test } from "vitest";
import type { Reservation } from "#protocol/kv.ts";
import type { PrefillReply } from "#protocol/prefill.ts";
import type { Generation, RequestHead } from "#protocol/request.ts";
import { simToken } from "../../native/binding/sim-token.ts";
import type { PrefillNode } from "../../prefill-node/prefill-node.ts";
import { FakeGateway } from "../support/fake-gateway.ts";
import { generationOf, promptOf } from "../support/generation.ts";
import { NodeWorld, type RankUnderTest } from "../support/node-world.ts";

let world: NodeWorld;

beforeEach(() => {
  world = new NodeWorld();
});
afterEach(async () => {
  await world.close();
});

type Prefill = RankUnderTest<PrefillNode>;

/** Sends work with a reservation of its own on `decode`. */
async function send(p: Prefill, decode: RankUnderTest, head: RequestHead, generation: Generation) {
  const reservation = await reserve(decode, head, generation);
  return {
    reservation,
    reply: await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation)),
  };
}

async function reserve(decode: RankUnderTest, head: RequestHead, generation: Generation): Promise<Reservation> {
  const reply = await world.settle(world.gateway.reserve(decode.rankId, decode.epoch, head, generation));
  if (reply.kind !== "reserved") throw new Error(`not reserved: ${reply.code}`);
  return reply.reservation;
}

async function free(rank: RankUnderTest, ...heads: readonly RequestHead[]): Promise<void> {
  for (const head of heads) await world.settle(world.gateway.cancel(rank.rankId, head));
}

const refused = (code: string) => expect.objectContaining({ kind: "refused", code }) as PrefillReply;

test("a prompt is computed in chunks, its pages go to the decode rank, its first token to the owner", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const tokens = promptOf(300);
  const { reply } = await send(p, d, head, generationOf(tokens, { sampling: { topLogprobs: 2 } }));
  expect(reply).toEqual({ kind: "prefill-accepted", cachedTokens: 0 });
  await world.until(() => world.gateway.outcomes.length > 0);
  expect(world.gateway.outcomes[0]).toMatchObject({
    kind: "prefill-done",
    head,
    rankId: p.rankId,
    epoch: p.epoch,
    firstToken: simToken(tokens, 300, 300, 2048),
    finish: null,
    cachedTokens: 0,
    logprobs: { width: 2 },
  });
  await world.clock.advance(20);
  expect(p.engine.stats()).toMatchObject({ sequences: 0, pagesSent: 5 * 6, prefillTokens: 300, steps: 3 });
  expect(d.engine.stats().pagesReceived).toBe(5 * 6);
  expect(p.held()).toBe(0);
  await free(d, head);
});

test("the same work twice is answered alike and computed once; after its end the outcome is told again", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(200));
  const { reservation, reply } = await send(p, d, head, generation);
  const again = () => world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation));
  expect(await again()).toEqual(reply);
  await world.until(() => world.gateway.outcomes.length > 0);
  await world.clock.advance(50);
  expect(world.gateway.outcomes).toHaveLength(1);
  expect(await again()).toEqual(reply);
  await world.clock.advance(5);
  expect(world.gateway.outcomes).toHaveLength(2);
  expect(world.gateway.outcomes[1]).toEqual(world.gateway.outcomes[0]);
  expect(p.engine.stats().prefillTokens).toBe(200);
  expect(await p.metric('margay_duplicate_messages_total{kind="prefill-work"}')).toBe(2);
  await free(d, head);
});

test("a second prompt with the same beginning is taken from the prefix cache", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const tokens = promptOf(200);
  const heads = [world.gateway.head(), world.gateway.head()] as const;
  await send(p, d, heads[0], generationOf(tokens));
  await world.until(() => world.gateway.outcomes.length === 1);
  await world.clock.advance(20);
  const { reply } = await send(p, d, heads[1], generationOf(tokens));
  expect(reply).toEqual({ kind: "prefill-accepted", cachedTokens: 192 });
  await world.until(() => world.gateway.outcomes.length === 2);
  expect(world.gateway.outcomes[1]).toMatchObject({ cachedTokens: 192 });
  expect(await p.metric('margay_prefix_cached_tokens_total{role="prefill"}')).toBe(192);
  await world.clock.advance(20);
  await free(d, ...heads);
});

test("what cannot be right is refused before any page is taken", async () => {
  const [p, d] = [await world.prefill({ kvBlocks: 8 }), await world.decode()];
  const head = world.gateway.head();
  const reservation = await reserve(d, head, generationOf(promptOf(20)));
  const ask = (generation: Generation, changes: Partial<Reservation> = {}, epoch = p.epoch, deadlineMs?: number) =>
    world.settle(world.gateway.prefill(p.rankId, epoch, head, generation, { ...reservation, ...changes }, deadlineMs));
  const good = generationOf(promptOf(20));
  expect(await ask(good, {}, p.epoch + 1)).toEqual(refused("stale_epoch"));
  expect(await ask(good, {}, p.epoch, world.clock.now() - 1)).toEqual(refused("timeout"));
  expect(await ask(generationOf(promptOf(4096)))).toEqual(refused("context_length_exceeded"));
  expect(await ask(generationOf(promptOf(513)))).toEqual(refused("context_length_exceeded"));
  expect(await ask(generationOf(Int32Array.of(5, -1)))).toEqual(refused("invalid_request"));
  expect(await ask(generationOf(Int32Array.of(5, 2048)))).toEqual(refused("invalid_request"));
  expect(await ask(generationOf(promptOf(20), { promptLength: 21 }))).toEqual(refused("invalid_request"));
  expect(await ask(generationOf(promptOf(20), { promptLength: 10, maxNewTokens: 10 }))).toEqual(
    refused("invalid_request"),
  );
  expect(await ask(good, { cachedTokens: 64 })).toEqual(refused("invalid_request"));
  expect(await ask(good, { cachedTokens: 20 })).toEqual(refused("invalid_request"));
  expect(p.engine.stats()).toMatchObject({ sequences: 0, steps: 0, blocks: { free: 8 } });
  expect(await p.metric('margay_worker_refused_total{role="prefill",code="invalid_request"}')).toBe(6);
  await free(d, head);
});

test("the rank admits what it can start within about a second and refuses the rest with a time to come back", async () => {
  // 128 tokens a second.
  const slow = { stepMs: 0, rowMs: 1000 / 128 };
  const p = await world.prefill({ slots: 32, model: slow });
  const d = await world.decode({ slots: 32, kvBlocks: 256 });
  const heads = Array.from({ length: 12 }, () => world.gateway.head());
  await send(p, d, heads[0]!, generationOf(promptOf(128, 1)));
  await world.until(() => world.gateway.outcomes.length === 1);
  const replies: PrefillReply[] = [];
  for (const [i, head] of heads.slice(1).entries()) {
    replies.push((await send(p, d, head, generationOf(promptOf(100, i + 2)))).reply);
  }
  const admitted = replies.filter((reply) => reply.kind === "prefill-accepted").length;
  expect(admitted).toBe(2);
  for (const reply of replies.slice(admitted)) {
    expect(reply).toEqual(refused("busy"));
    if (reply.kind === "refused") {
      expect(reply.retryAfterMs).toBeGreaterThan(300);
      expect(reply.retryAfterMs).toBeLessThan(700);
    }
  }
  await world.until(() => world.gateway.outcomes.length === 3);
  await world.clock.advance(20);
  expect(
    (await send(p, d, world.gateway.head(0, heads.at(-1)!.requestId), generationOf(promptOf(40)))).reply.kind,
  ).toBe("prefill-accepted");
  await world.until(() => world.gateway.outcomes.length === 4);
  await world.clock.advance(20);
  await free(d, ...heads);
});

test("with every slot taken the rank is busy; with no blocks left it is too", async () => {
  const [p, d] = [await world.prefill({ slots: 1, model: { stepMs: 50 } }), await world.decode()];
  const heads = [world.gateway.head(), world.gateway.head()] as const;
  await send(p, d, heads[0], generationOf(promptOf(100)));
  expect((await send(p, d, heads[1], generationOf(promptOf(100)))).reply).toEqual(refused("busy"));
  await free(p, ...heads);
  await free(d, ...heads);
  const small = await world.prefill({ kvBlocks: 3, model: { stepMs: 50 } });
  const [a, b] = [world.gateway.head(), world.gateway.head()];
  await send(small, d, a, generationOf(promptOf(130)));
  const { reply } = await send(small, d, b, generationOf(promptOf(130, 4)));
  expect(reply).toEqual(refused("busy"));
  if (reply.kind === "refused") expect(reply.retryAfterMs).toBeGreaterThan(0);
  await free(small, a);
  await free(d, a, b);
});

test("a cancelled prompt gives everything back, at the latest when the running step ends, and is not accepted again", async () => {
  const [p, d] = [await world.prefill({ model: { stepMs: 50 } }), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(1000));
  const { reservation } = await send(p, d, head, generation);
  await world.clock.advance(70);
  const startMs = world.clock.now();
  expect(await world.settle(world.gateway.cancel(p.rankId, head))).toMatchObject({ kind: "cancelled", known: true });
  expect(world.clock.now() - startMs).toBeLessThanOrEqual(110);
  expect(p.held()).toBe(0);
  expect(p.engine.stats().sequences).toBe(0);
  expect(await world.settle(world.gateway.cancel(p.rankId, head))).toMatchObject({ kind: "cancelled", known: false });
  expect(await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation))).toEqual(
    refused("cancelled"),
  );
  await world.clock.advance(500);
  expect(world.gateway.outcomes).toEqual([]);
  await free(d, head);
});

test("work that arrives behind its own cancel is refused; a later attempt is not", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head(1);
  expect(await world.settle(world.gateway.cancel(p.rankId, head))).toMatchObject({ kind: "cancelled", known: false });
  const generation = generationOf(promptOf(20));
  expect((await send(p, d, head, generation)).reply).toEqual(refused("cancelled"));
  expect((await send(p, d, world.gateway.head(2, head.requestId), generation)).reply.kind).toBe("prefill-accepted");
  await world.until(() => world.gateway.outcomes.length === 1);
  await world.clock.advance(20);
  await free(d, world.gateway.head(2, head.requestId));
});

test("a newer attempt replaces an older one; the older one is refused from then on", async () => {
  const [p, d] = [await world.prefill({ model: { stepMs: 50 } }), await world.decode()];
  const old = world.gateway.head(0);
  const next = world.gateway.head(1, old.requestId);
  const generation = generationOf(promptOf(500));
  const { reservation } = await send(p, d, old, generation);
  await world.clock.advance(60);
  await send(p, d, next, generation);
  await world.until(() => world.gateway.outcomes.length > 0);
  await world.clock.advance(50);
  expect(world.gateway.outcomes).toHaveLength(1);
  expect(world.gateway.outcomes[0]).toMatchObject({ kind: "prefill-done", head: next });
  expect(await world.settle(world.gateway.prefill(p.rankId, p.epoch, old, generation, reservation))).toEqual(
    refused("cancelled"),
  );
  await free(d, next);
});

test("pages that are refused fail the request at once, also after its first token was told", async () => {
  const [p, d] = [await world.prefill({ model: { transferMs: 5 } }), await world.decode()];
  const early = world.gateway.head();
  world.fabric.fault = () => "checksum";
  await send(p, d, early, generationOf(promptOf(1000)));
  await world.until(() => world.gateway.outcomes.length === 1);
  expect(world.gateway.outcomes[0]).toMatchObject({ kind: "prefill-failed", head: early, code: "transfer_failed" });
  const late = world.gateway.head();
  await send(p, d, late, generationOf(promptOf(40)));
  await world.until(() => world.gateway.outcomes.length === 3);
  expect(world.gateway.outcomesOf(late).map((outcome) => outcome.kind)).toEqual(["prefill-done", "prefill-failed"]);
  await world.clock.advance(20);
  expect(p.held()).toBe(0);
  expect(await d.metric('margay_kv_frames_refused_total{cause="checksum"}')).toBeGreaterThan(0);
  await free(d, early, late);
});

test("pages nobody acknowledges are let go at the deadline, and the owner is told", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  world.fabric.fault = () => "lose";
  await send(p, d, head, generationOf(promptOf(40)));
  await world.until(() => world.gateway.outcomes.length === 1);
  expect(p.held()).toBeGreaterThan(0);
  await world.until(() => world.gateway.outcomes.length === 2, 11_000);
  expect(world.gateway.outcomes[1]).toMatchObject({ kind: "prefill-failed", code: "transfer_failed" });
  await world.clock.advance(20);
  expect(p.held()).toBe(0);
});

test("a prompt that is not done at its deadline fails as timeout", async () => {
  const [p, d] = [await world.prefill({ model: { stepMs: 400 } }), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(1000));
  const reservation = await reserve(d, head, generation);
  const deadlineMs = world.clock.now() + 1_000;
  await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation, deadlineMs));
  await world.until(() => world.gateway.outcomes.length === 1);
  expect(world.gateway.outcomes[0]).toMatchObject({ kind: "prefill-failed", code: "timeout" });
  expect(world.clock.now()).toBeLessThanOrEqual(deadlineMs + 3);
  await world.clock.advance(1_000);
  await free(d, head);
});

test("a broken number fails that request alone, and its blocks are not kept", async () => {
  const bad = promptOf(100, 9);
  const numericAt = (tokens: Int32Array) => tokens[0] === bad[0] && tokens[1] === bad[1];
  const [p, d] = [await world.prefill({ model: { numericAt } }), await world.decode()];
  const heads = [world.gateway.head(), world.gateway.head()] as const;
  await send(p, d, heads[0], generationOf(bad));
  await send(p, d, heads[1], generationOf(promptOf(50)));
  await world.until(() => world.gateway.outcomes.length === 2);
  expect(world.gateway.outcomesOf(heads[0])[0]).toMatchObject({ kind: "prefill-failed", code: "numeric" });
  expect(world.gateway.outcomesOf(heads[1])[0]).toMatchObject({ kind: "prefill-done" });
  await world.clock.advance(20);
  expect(p.engine.stats().blocks.cached).toBe(0);
  await free(d, ...heads);
});

test("the first token tells when it also ends the request", async () => {
  const model = { eosAt: (_: Int32Array, index: number) => index === 0 };
  const [p, d] = [await world.prefill({ model }), await world.decode()];
  const [stop, length] = [world.gateway.head(), world.gateway.head()];
  await send(p, d, stop, generationOf(promptOf(30)));
  await send(p, d, length, generationOf(promptOf(30), { maxNewTokens: 1, sampling: { minNewTokens: 1 } }));
  await world.until(() => world.gateway.outcomes.length === 2);
  expect(world.gateway.outcomesOf(stop)[0]).toMatchObject({ finish: "stop" });
  expect(world.gateway.outcomesOf(length)[0]).toMatchObject({ finish: "length" });
  await world.clock.advance(20);
  await free(d, stop, length);
});

test("requests of a silent owner end and are counted; those of a living one go on", async () => {
  const p = await world.prefill({ model: { stepMs: 10_000 }, maxStepTokens: 1024 });
  const d = await world.decode();
  const other = new FakeGateway(world.network.connect(), world.clock, "gw2");
  await world.clock.advance(2_000);
  const orphan = { ...world.gateway.head(0, "orphan"), owner: other.id };
  const kept = world.gateway.head();
  const generation = generationOf(promptOf(1200));
  const deadlineMs = world.clock.now() + 120_000;
  for (const head of [orphan, kept]) {
    const reply = await world.settle(world.gateway.reserve(d.rankId, d.epoch, head, generation, deadlineMs));
    if (reply.kind !== "reserved") throw new Error("not reserved");
    const work = world.gateway.prefill(p.rankId, p.epoch, head, generation, reply.reservation, deadlineMs);
    expect((await world.settle(work)).kind).toBe("prefill-accepted");
  }
  other.die();
  await world.clock.advance(30_000);
  expect(await p.metric('margay_orphans_total{role="prefill"}')).toBe(1);
  await world.until(() => world.gateway.outcomes.length > 0, 60_000);
  expect(world.gateway.outcomes[0]).toMatchObject({ kind: "prefill-done", head: kept });
  expect(other.outcomes).toEqual([]);
  await world.clock.advance(20);
  await free(d, orphan, kept);
});

test("a draining rank refuses new work, finishes what it can, fails the rest, and says goodbye", async () => {
  const [p, d] = [await world.prefill({ model: { stepMs: 100 } }), await world.decode()];
  const [short, long] = [world.gateway.head(), world.gateway.head()];
  await send(p, d, short, generationOf(promptOf(40)));
  await send(p, d, long, generationOf(promptOf(3000)));
  const deadlineMs = world.clock.now() + 1_000;
  expect(await world.settle(world.gateway.drain(p.rankId, deadlineMs))).toEqual({ kind: "done" });
  expect(p.stops).toEqual([{ reason: expect.any(String), deadlineMs }]);
  const drained = p.node.drain(deadlineMs);
  await world.clock.advance(5);
  expect(world.gateway.beats.findLast((beat) => beat.rankId === p.rankId)).toMatchObject({ state: "draining" });
  expect(p.node.readiness().ready).toBe(false);
  const late = world.gateway.head();
  expect((await send(p, d, late, generationOf(promptOf(40)))).reply).toEqual(refused("draining"));
  await world.settle(drained);
  expect(world.gateway.outcomesOf(short)[0]).toMatchObject({ kind: "prefill-done" });
  expect(world.gateway.outcomesOf(long)[0]).toMatchObject({ kind: "prefill-failed", code: "draining" });
  expect(world.clock.now()).toBeLessThanOrEqual(deadlineMs + 1_000);
  expect(p.held()).toBe(0);
  await world.settle(p.node[Symbol.asyncDispose]());
  await world.clock.advance(5);
  expect(world.gateway.beats.findLast((beat) => beat.rankId === p.rankId)).toMatchObject({ kind: "goodbye" });
  await free(d, short, long, late);
});

test("heartbeats carry the load; cache changes are announced in order and match the snapshot", async () => {
  const [p, d] = [await world.prefill({ model: { stepMs: 400 } }), await world.decode()];
  const head = world.gateway.head();
  await send(p, d, head, generationOf(promptOf(500)));
  await world.clock.advance(600);
  const beat = world.gateway.beats.findLast((one) => one.rankId === p.rankId)!;
  expect(beat).toMatchObject({ state: "ready", role: "prefill", kvEndpoint: null });
  if (beat.kind === "heartbeat") {
    expect(beat.load).toMatchObject({ requests: 1, maxRequests: 8, blocksTotal: 64 });
    expect(beat.load.pendingPrefillTokens).toBeGreaterThan(0);
    expect(beat.load.prefillTokensPerSecond).toBeGreaterThan(0);
    expect(beat.load.blocksAvailable).toBeLessThan(64);
  }
  await world.until(() => world.gateway.outcomes.length > 0);
  await world.clock.advance(50);
  const events = world.gateway.kvEvents.filter((event) => event.rankId === p.rankId);
  expect(events.map((event) => event.seq)).toEqual(events.map((_, i) => i));
  const stored = Buffer.concat(events.map((event) => event.stored)).toString("hex");
  const epoch = p.epoch + 1; // another one: nothing of it can be told again
  const snapshot = await world.settle(world.gateway.missed(p.rankId, epoch));
  if (snapshot.kind !== "kv-snapshot") throw new Error("a replay of another epoch");
  expect(Buffer.from(snapshot.hashes).toString("hex")).toBe(stored);
  expect(snapshot.seq).toBe(events.length - 1);
  expect(snapshot.hashes.length).toBe(7 * 16);
  await free(d, head);
});

test("an engine that fails ends the process and says goodbye at once", async () => {
  const p = await world.prefill();
  p.engine.fail("bad memory");
  await world.clock.advance(5);
  expect(p.failures).toEqual([expect.objectContaining({ message: expect.stringContaining("bad memory") })]);
  expect(world.gateway.beats.at(-1)).toMatchObject({ kind: "goodbye", rankId: p.rankId });
  world.ranks.splice(world.ranks.indexOf(p), 1);
  await world.settle(p.node[Symbol.asyncDispose]());
});
