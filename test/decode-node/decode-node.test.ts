import { afterEach, beforeEach, expect, test } from "vitest";
import type { Reservation } from "#protocol/kv.ts";
import type { Generation, RequestHead } from "#protocol/request.ts";
import type { DecodeNode } from "../../decode-node/decode-node.ts";
import { SIM_EOS_TOKEN, simToken } from "../../native/binding/sim-token.ts";
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

type Decode = RankUnderTest<DecodeNode>;
type Prefill = RankUnderTest<PrefillNode>;

const refused = (code: string) => expect.objectContaining({ kind: "refused", code });

async function reserve(
  d: Decode,
  head: RequestHead,
  generation: Generation,
  deadlineMs?: number,
): Promise<Reservation> {
  const reply = await world.settle(world.gateway.reserve(d.rankId, d.epoch, head, generation, deadlineMs));
  if (reply.kind !== "reserved") throw new Error(`not reserved: ${reply.code} ${reply.detail}`);
  return reply.reservation;
}

/** Steps 2 to 7 of a request's life: reserve, prefill, start. */
async function serve(p: Prefill, d: Decode, head: RequestHead, generation: Generation) {
  const reservation = await reserve(d, head, generation);
  await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation));
  await world.until(() => world.gateway.outcomesOf(head).length > 0);
  const outcome = world.gateway.outcomesOf(head)[0]!;
  if (outcome.kind !== "prefill-done") throw new Error(outcome.code);
  const started = await world.settle(world.gateway.start(reservation, head, outcome.firstToken));
  return { reservation, outcome, started };
}

/** Lets the decode rank compute the prompt. */
async function serveLocally(d: Decode, head: RequestHead, generation: Generation) {
  const reservation = await reserve(d, head, generation);
  const started = await world.settle(world.gateway.start(reservation, head, null));
  return { reservation, started };
}

function expected(generation: Generation, from: number, to: number): number[] {
  const { tokens, promptLength } = generation;
  return Array.from({ length: to - from }, (_, i) => simToken(tokens, promptLength, promptLength + from + i, 2048));
}

async function done(head: RequestHead): Promise<void> {
  await world.until(() => world.gateway.stream(head.requestId).done !== null);
  await world.clock.advance(5);
}

test("pages come from a prefill rank, tokens go to the gateway, usage says who did what", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(150), { maxNewTokens: 20 });
  const { reservation, outcome, started } = await serve(p, d, head, generation);
  expect(reservation).toMatchObject({ rankId: d.rankId, epoch: d.epoch, cachedTokens: 0 });
  expect(reservation.endpoint).toMatchObject({ host: "127.0.0.1", port: d.engine.info.kvPort });
  expect(started).toMatchObject({ kind: "started", pages: 18, bytes: 18 * 32_768 });
  await done(head);
  const stream = world.gateway.stream(head.requestId);
  expect([outcome.firstToken, ...stream.tokens]).toEqual(expected(generation, 0, 20));
  expect(stream.seqs[0]).toBe(1);
  expect(stream.done).toMatchObject({ finish: "length", error: null, cachedTokens: 0, computedTokens: 0 });
  expect(stream.done!.decodeMs).toBeGreaterThan(0);
  expect(await d.metric('margay_prefill_tokens_total{role="decode"}')).toBe(0);
  expect(await d.metric('margay_decode_tokens_total{role="decode"}')).toBe(19);
  expect(await d.metric('margay_kv_transfer_bytes_total{role="decode",direction="received"}')).toBe(18 * 32_768);
  expect(await d.metric("margay_kv_transfer_seconds_count")).toBe(1);
});

test("a request that goes on elsewhere after its rank is lost gets the tokens it would have got", async () => {
  const [p, d, e] = [await world.prefill(), await world.decode(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(100), { maxNewTokens: 30 });
  const { outcome } = await serve(p, d, head, generation);
  await world.until(() => world.gateway.stream(head.requestId).tokens.length >= 10);
  await world.settle(world.gateway.cancel(d.rankId, head));
  const had = [outcome.firstToken, ...world.gateway.stream(head.requestId).tokens];
  const next = world.gateway.head(1, "moved");
  const moved = { ...generation, tokens: Int32Array.from([...generation.tokens, ...had]) };
  const second = await serve(p, e, next, moved);
  await done(next);
  const rest = world.gateway.stream(next.requestId);
  expect([...had, second.outcome.firstToken, ...rest.tokens]).toEqual(expected(generation, 0, 30));
  expect(rest.seqs[0]).toBe(had.length + 1);
});

test("a rank may compute the prompt itself, beside running streams that lose no step to it", async () => {
  const [p, d] = [await world.prefill(), await world.decode({ maxStepTokens: 16 })];
  const running = world.gateway.head();
  await serve(p, d, running, generationOf(promptOf(60), { maxNewTokens: 100 }));
  const head = world.gateway.head();
  const generation = generationOf(promptOf(200, 3), { maxNewTokens: 5 });
  const { started } = await serveLocally(d, head, generation);
  expect(started).toEqual({ kind: "started", pages: 0, bytes: 0, transferMs: 0 });
  const before = d.engine.stats().steps;
  const had = world.gateway.stream(running.requestId).tokens.length;
  await done(head);
  const stream = world.gateway.stream(head.requestId);
  expect(stream.tokens).toEqual(expected(generation, 0, 5));
  expect(stream.seqs[0]).toBe(0);
  expect(stream.done).toMatchObject({ finish: "length", cachedTokens: 0, computedTokens: 200 });
  const steps = d.engine.stats().steps - before;
  const gained = world.gateway.stream(running.requestId).tokens.length - had;
  expect(steps).toBeGreaterThanOrEqual(Math.ceil(200 / 15));
  expect(Math.abs(gained - steps)).toBeLessThanOrEqual(2);
  expect(await d.metric('margay_prefill_tokens_total{role="decode"}')).toBe(200);
  await done(running);
});

test("pages the rank has from an earlier request are neither moved nor computed again", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const tokens = promptOf(150);
  const [a, b, c] = [world.gateway.head(), world.gateway.head(), world.gateway.head()];
  await serve(p, d, a, generationOf(tokens, { maxNewTokens: 4 }));
  await done(a);
  const second = await serve(p, d, b, generationOf(tokens, { maxNewTokens: 4 }));
  expect(second.reservation.cachedTokens).toBe(128);
  expect(second.started).toMatchObject({ pages: 6 });
  await done(b);
  expect(world.gateway.stream(b.requestId).done).toMatchObject({ cachedTokens: 128, computedTokens: 0 });
  await serveLocally(d, c, generationOf(tokens, { maxNewTokens: 4 }));
  await done(c);
  expect(world.gateway.stream(c.requestId).done).toMatchObject({ cachedTokens: 128, computedTokens: 22 });
});

test("all that one step makes for one gateway travels in one message", async () => {
  const [p, d] = [await world.prefill(), await world.decode({ model: { stepMs: 5 } })];
  const other = new FakeGateway(world.network.connect(), world.clock, "gw2");
  const heads = [0, 1, 2, 3, 4].map(() => world.gateway.head());
  for (const [i, head] of heads.entries()) {
    const generation = generationOf(promptOf(30, i), { maxNewTokens: 200 });
    await serve(p, d, head, generation);
  }
  const foreign = { ...world.gateway.head(), owner: other.id };
  await serveLocally(d, foreign, generationOf(promptOf(30, 9), { maxNewTokens: 200 }));
  await world.until(() => other.batches.length > 2);
  const [before, beforeOther, steps] = [world.gateway.batches.length, other.batches.length, d.engine.stats().steps];
  await world.clock.advance(200);
  const made = d.engine.stats().steps - steps;
  expect(made).toBeGreaterThan(20);
  expect(world.gateway.batches.length - before).toBe(made);
  expect(other.batches.length - beforeOther).toBe(made);
  for (const batch of world.gateway.batches.slice(before)) {
    expect(batch.chunks.map((chunk) => chunk.requestId)).toEqual(heads.map((head) => head.requestId));
  }
  for (const head of [...heads, foreign]) await world.settle(world.gateway.cancel(d.rankId, head));
});

test("the same reservation and the same start twice are answered alike and obeyed once", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(50), { maxNewTokens: 10 });
  const { reservation, outcome, started } = await serve(p, d, head, generation);
  expect(await reserve(d, head, generation)).toEqual(reservation);
  expect(d.engine.stats().sequences).toBe(1);
  expect(await world.settle(world.gateway.start(reservation, head, outcome.firstToken))).toEqual(started);
  await done(head);
  expect(world.gateway.stream(head.requestId).tokens).toHaveLength(9);
  // The answer to a start may be lost while a short request runs to its end.
  expect(await world.settle(world.gateway.start(reservation, head, outcome.firstToken))).toEqual(started);
  const late = await world.settle(world.gateway.reserve(d.rankId, d.epoch, head, generation));
  expect(late).toEqual(refused("unknown_request"));
  expect(d.engine.stats().sequences).toBe(0);
});

test("what cannot be right is refused before any page is taken", async () => {
  const d = await world.decode({ kvBlocks: 8, slots: 1 });
  const head = world.gateway.head();
  const ask = (generation: Generation, epoch = d.epoch, deadlineMs?: number) =>
    world.settle(world.gateway.reserve(d.rankId, epoch, head, generation, deadlineMs));
  const good = generationOf(promptOf(20));
  expect(await ask(good, d.epoch + 1)).toEqual(refused("stale_epoch"));
  expect(await ask(good, d.epoch, world.clock.now())).toEqual(refused("timeout"));
  expect(await ask(generationOf(promptOf(4096)))).toEqual(refused("context_length_exceeded"));
  expect(await ask(generationOf(promptOf(500), { maxNewTokens: 13 }))).toEqual(refused("context_length_exceeded"));
  expect(await ask(generationOf(Int32Array.of(3, 2048)))).toEqual(refused("invalid_request"));
  expect(await ask(generationOf(promptOf(20), { promptLength: 21 }))).toEqual(refused("invalid_request"));
  expect(await ask(generationOf(promptOf(20), { promptLength: 4, maxNewTokens: 16 }))).toEqual(
    refused("invalid_request"),
  );
  expect(d.engine.stats().blocks.free).toBe(8);
  const holder = world.gateway.head();
  await reserve(d, holder, good);
  const busy = await ask(good);
  expect(busy).toEqual(refused("busy"));
  if (busy.kind === "refused") expect(busy.retryAfterMs).toBeGreaterThan(0);
  await world.settle(world.gateway.cancel(d.rankId, holder));
  expect((await ask(good)).kind).toBe("reserved");
  await world.settle(world.gateway.cancel(d.rankId, head));
});

test("a start for another handle, epoch, attempt or nobody is refused and disturbs nobody", async () => {
  const d = await world.decode();
  const head = world.gateway.head();
  const reservation = await reserve(d, head, generationOf(promptOf(20), { maxNewTokens: 5 }));
  const ask = (changes: Partial<Reservation>, who = head) =>
    world.settle(world.gateway.start({ ...reservation, ...changes }, who, null));
  const { slot, generation } = reservation.handle;
  expect(await ask({ handle: { slot, generation: generation + 1 } })).toEqual(refused("unknown_request"));
  expect(await ask({ handle: { slot: slot + 1, generation } })).toEqual(refused("unknown_request"));
  expect(await ask({ epoch: d.epoch + 1 })).toEqual(refused("stale_epoch"));
  expect(await ask({}, world.gateway.head())).toEqual(refused("unknown_request"));
  expect(await ask({}, world.gateway.head(1, head.requestId))).toEqual(refused("unknown_request"));
  expect((await ask({})).kind).toBe("started");
  await done(head);
});

test("a first token that is no token or leaves nothing to generate is refused, and the pages are free", async () => {
  const d = await world.decode();
  for (const [token, maxNewTokens] of [
    [2048, 8],
    [5, 1],
  ] as const) {
    const head = world.gateway.head();
    const reservation = await reserve(d, head, generationOf(promptOf(20), { maxNewTokens }));
    expect(await world.settle(world.gateway.start(reservation, head, token))).toEqual(refused("invalid_request"));
    await world.clock.advance(2);
    expect(d.held()).toBe(0);
  }
});

test("pages that do not come until the transfer deadline fail the start, and everything is free", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  world.fabric.fault = (page) => (page.index === 1 ? "lose" : "deliver");
  const head = world.gateway.head();
  const generation = generationOf(promptOf(150));
  const reservation = await reserve(d, head, generation);
  await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation));
  await world.until(() => world.gateway.outcomes.length > 0);
  const startMs = world.clock.now();
  const reply = await world.settle(world.gateway.start(reservation, head, 100, startMs + 1_500));
  expect(reply).toEqual(refused("transfer_failed"));
  expect(world.clock.now() - startMs).toBeLessThanOrEqual(1_502);
  await world.clock.advance(2);
  expect(d.held()).toBe(0);
  expect(world.gateway.stream(head.requestId).tokens).toEqual([]);
  await world.clock.advance(10_000);
});

test("a reservation nobody starts lapses at its deadline by itself", async () => {
  const d = await world.decode();
  const head = world.gateway.head();
  const generation = generationOf(promptOf(100));
  const reservation = await reserve(d, head, generation, world.clock.now() + 2_000);
  await world.clock.advance(1_990);
  expect(d.held()).toBeGreaterThan(0);
  await world.clock.advance(20);
  expect(d.held()).toBe(0);
  expect(await world.settle(world.gateway.start(reservation, head, null))).toEqual(refused("reservation_expired"));
  const again = await world.settle(world.gateway.reserve(d.rankId, d.epoch, head, generation));
  expect(again).toEqual(refused("reservation_expired"));
  await reserve(d, world.gateway.head(1, head.requestId), generation);
  await world.settle(world.gateway.cancel(d.rankId, world.gateway.head(1, head.requestId)));
});

test("a reservation that lapses while its start waits for pages ends the start", async () => {
  const d = await world.decode();
  const head = world.gateway.head();
  const reservation = await reserve(d, head, generationOf(promptOf(100)), world.clock.now() + 1_000);
  const reply = world.gateway.start(reservation, head, 100, world.clock.now() + 9_000);
  expect(await world.settle(reply)).toEqual(refused("reservation_expired"));
  expect(d.held()).toBe(0);
});

test("another prefill rank may fill the same reservation after the first one failed", async () => {
  const [p, q, d] = [await world.prefill(), await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(300), { maxNewTokens: 8 });
  const reservation = await reserve(d, head, generation);
  world.fabric.fault = (page) => (page.from === p.rankId && page.index === 2 ? "lose" : "deliver");
  await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation));
  await world.until(() => d.engine.stats().pagesReceived > 0);
  await world.settle(world.gateway.cancel(p.rankId, head));
  await world.settle(world.gateway.prefill(q.rankId, q.epoch, head, generation, reservation));
  await world.until(() => world.gateway.outcomes.some((outcome) => outcome.rankId === q.rankId));
  const outcome = world.gateway.outcomes.find((one) => one.rankId === q.rankId)!;
  if (outcome.kind !== "prefill-done") throw new Error(outcome.code);
  expect((await world.settle(world.gateway.start(reservation, head, outcome.firstToken))).kind).toBe("started");
  await done(head);
  expect(world.gateway.stream(head.requestId).tokens).toEqual(expected(generation, 1, 8));
  expect(d.engine.stats().duplicatePages).toBeGreaterThan(0);
});

test("what a failed prefill left behind is completed by the decode rank itself", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(300), { maxNewTokens: 4 });
  const reservation = await reserve(d, head, generation);
  world.fabric.fault = (page) => (page.index >= 2 ? "lose" : "deliver");
  await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation));
  await world.until(() => d.engine.stats().pagesReceived === 12);
  await world.settle(world.gateway.cancel(p.rankId, head));
  expect((await world.settle(world.gateway.start(reservation, head, null))).kind).toBe("started");
  await done(head);
  const stream = world.gateway.stream(head.requestId);
  expect(stream.tokens).toEqual(expected(generation, 0, 4));
  expect(stream.done).toMatchObject({ computedTokens: 300 - 128 });
  await world.clock.advance(11_000);
});

for (const phase of ["reserved", "receiving", "waiting for pages", "computing the prompt", "decoding"] as const) {
  test(`a cancel while ${phase} leaves nothing held once it is acknowledged`, async () => {
    const p = await world.prefill({ model: { stepMs: 20 } });
    const d = await world.decode({ maxStepTokens: 32, model: { stepMs: 20 } });
    const head = world.gateway.head();
    const generation = generationOf(promptOf(400), { maxNewTokens: 50 });
    const reservation = await reserve(d, head, generation);
    let start = null;
    if (phase === "receiving" || phase === "waiting for pages") {
      world.fabric.fault = (page) => (page.index > 3 ? "lose" : "deliver");
      await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation));
      await world.until(() => d.engine.stats().pagesReceived > 0);
      if (phase === "waiting for pages") start = world.gateway.start(reservation, head, 100);
    } else if (phase !== "reserved") {
      await world.settle(world.gateway.start(reservation, head, null));
      if (phase === "decoding") await world.until(() => world.gateway.stream(head.requestId).tokens.length > 5);
    }
    await world.clock.advance(7);
    const startMs = world.clock.now();
    expect(await world.settle(world.gateway.cancel(d.rankId, head))).toEqual({ kind: "cancelled", known: true });
    expect(d.held()).toBe(0);
    expect(d.engine.stats().sequences).toBe(0);
    expect(world.clock.now() - startMs).toBeLessThanOrEqual(50);
    if (start !== null) expect(await world.settle(start)).toEqual(refused("cancelled"));
    const { length } = world.gateway.stream(head.requestId).tokens;
    await world.clock.advance(500);
    expect(world.gateway.stream(head.requestId).tokens.length).toBe(length);
    expect(world.gateway.stream(head.requestId).done).toBeNull();
    expect(await world.settle(world.gateway.cancel(d.rankId, head))).toEqual({ kind: "cancelled", known: false });
    const late = await world.settle(world.gateway.reserve(d.rankId, d.epoch, head, generation));
    expect(late).toEqual(refused("cancelled"));
    expect(await world.settle(world.gateway.start(reservation, head, null))).toEqual(refused("cancelled"));
    await world.settle(world.gateway.cancel(p.rankId, head));
    await world.clock.advance(10_000);
  });
}

test("a reservation that arrives behind its own cancel is refused", async () => {
  const d = await world.decode();
  const head = world.gateway.head();
  expect(await world.settle(world.gateway.cancel(d.rankId, head))).toEqual({ kind: "cancelled", known: false });
  const reply = await world.settle(world.gateway.reserve(d.rankId, d.epoch, head, generationOf(promptOf(20))));
  expect(reply).toEqual(refused("cancelled"));
});

test("a newer attempt replaces an older one on the same rank, whatever that was doing", async () => {
  const d = await world.decode();
  const old = world.gateway.head(0);
  const next = world.gateway.head(1, old.requestId);
  const generation = generationOf(promptOf(50), { maxNewTokens: 40 });
  const { reservation } = await serveLocally(d, old, generation);
  await world.until(() => world.gateway.stream(old.requestId).tokens.length > 5);
  const second = await reserve(d, next, generation);
  await world.clock.advance(5);
  const { length } = world.gateway.stream(old.requestId).tokens;
  expect(await world.settle(world.gateway.start(reservation, old, null))).toEqual(refused("cancelled"));
  const late = await world.settle(world.gateway.reserve(d.rankId, d.epoch, old, generation));
  expect(late).toEqual(refused("cancelled"));
  expect(await world.settle(world.gateway.resume(d.rankId, old, 0))).toEqual(refused("unknown_request"));
  await world.clock.advance(50);
  expect(world.gateway.stream(old.requestId).tokens.length).toBe(length);
  await world.settle(world.gateway.start(second, next, null));
  await done(next);
  expect(d.engine.stats().sequences).toBe(0);
});

test("tokens the bus lost are told again from any place on, until they are acknowledged", async () => {
  const d = await world.decode();
  const head = world.gateway.head();
  const generation = generationOf(promptOf(50), { maxNewTokens: 30, sampling: { topLogprobs: 1 } });
  await serveLocally(d, head, generation);
  await world.until(() => world.gateway.stream(head.requestId).tokens.length >= 5);
  world.gateway.acknowledge(d.rankId, head, 3);
  await world.clock.advance(1);
  world.network.disconnect(d.bus);
  await world.clock.advance(100);
  expect(world.gateway.stream(head.requestId).done).toBeNull();
  world.network.reconnect(d.bus);
  const resumed = await world.settle(world.gateway.resume(d.rankId, head, 4));
  if (resumed.kind !== "resumed") throw new Error(resumed.code);
  expect(resumed.chunk.seq).toBe(4);
  expect([...resumed.chunk.tokens]).toEqual(expected(generation, 4, 30));
  expect(resumed.chunk.logprobs).toMatchObject({ width: 1 });
  expect(resumed.chunk.logprobs!.ids.length).toBe(26);
  expect(resumed.chunk.done).toMatchObject({ finish: "length" });
  expect(await world.settle(world.gateway.resume(d.rankId, head, 2))).toEqual(refused("invalid_request"));
  expect(await world.settle(world.gateway.resume(d.rankId, world.gateway.head(1, head.requestId), 4))).toEqual(
    refused("unknown_request"),
  );
  world.gateway.acknowledge(d.rankId, head, 30);
  await world.clock.advance(1);
  expect(await world.settle(world.gateway.resume(d.rankId, head, 29))).toEqual(refused("unknown_request"));
});

test("the tail of an ended request is forgotten after 30 s without acknowledgement", async () => {
  const d = await world.decode();
  const head = world.gateway.head();
  await serveLocally(d, head, generationOf(promptOf(50), { maxNewTokens: 3 }));
  await done(head);
  await world.clock.advance(29_000);
  expect((await world.settle(world.gateway.resume(d.rankId, head, 0))).kind).toBe("resumed");
  await world.clock.advance(2_000);
  expect(await world.settle(world.gateway.resume(d.rankId, head, 0))).toEqual(refused("unknown_request"));
});

test("end of text, a stop token and a broken number end a stream, each in its own words", async () => {
  const broken = promptOf(40, 7);
  const ended = promptOf(40, 8);
  const same = (a: Int32Array, b: Int32Array) => a.every((token, i) => token === b[i]);
  const d = await world.decode({
    model: {
      numericAt: (tokens, index) => same(tokens, broken) && index === 3,
      eosAt: (tokens, index) => same(tokens, ended) && index === 2,
    },
  });
  const [a, b, c] = [world.gateway.head(), world.gateway.head(), world.gateway.head()];
  await serveLocally(d, a, generationOf(broken));
  await serveLocally(d, b, generationOf(ended));
  const stopping = generationOf(promptOf(40, 9));
  const stopTokens = Int32Array.of(expected(stopping, 4, 5)[0]!);
  await serveLocally(d, c, { ...stopping, sampling: { ...stopping.sampling, stopTokens } });
  for (const head of [a, b, c]) await done(head);
  expect(world.gateway.stream(a.requestId)).toMatchObject({ done: { finish: null, error: "numeric" } });
  expect(world.gateway.stream(a.requestId).tokens).toEqual(expected(generationOf(broken), 0, 3));
  expect(world.gateway.stream(b.requestId)).toMatchObject({ done: { finish: "stop" } });
  expect(world.gateway.stream(b.requestId).tokens.at(-1)).toBe(SIM_EOS_TOKEN);
  expect(world.gateway.stream(c.requestId)).toMatchObject({ done: { finish: "stop" } });
  expect(world.gateway.stream(c.requestId).tokens).toEqual(expected(stopping, 0, 5));
});

test("requests of a silent owner end in every phase; those of a living one go on", async () => {
  const d = await world.decode({ model: { stepMs: 1_000 } });
  const other = new FakeGateway(world.network.connect(), world.clock, "gw2");
  await world.clock.advance(2_000);
  const orphan = { ...world.gateway.head(0, "orphan"), owner: other.id };
  const waiting = { ...world.gateway.head(0, "waiting"), owner: other.id };
  const kept = world.gateway.head();
  await serveLocally(d, orphan, generationOf(promptOf(50), { maxNewTokens: 60 }));
  await serveLocally(d, kept, generationOf(promptOf(50), { maxNewTokens: 30 }));
  await reserve(d, waiting, generationOf(promptOf(50)), world.clock.now() + 60_000);
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
  await serveLocally(d, head, generation);
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
  await serveLocally(d, short, generationOf(promptOf(30), { maxNewTokens: 20 }));
  await serveLocally(d, long, generationOf(promptOf(30, 2), { maxNewTokens: 900 }));
  const reservation = await reserve(d, waiting, generationOf(promptOf(30, 3)));
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
  expect(handedBack.tokens).toEqual(expected(generationOf(promptOf(30, 2)), 0, handedBack.tokens.length));
  expect(world.clock.now()).toBeLessThanOrEqual(deadlineMs + 1_000);
  expect(d.held()).toBe(0);
  await world.settle(d.node[Symbol.asyncDispose]());
  await world.clock.advance(5);
  expect(world.gateway.beats.findLast((beat) => beat.rankId === d.rankId)).toMatchObject({ kind: "goodbye" });
});

test("heartbeats tell where KV is taken and how much room there is", async () => {
  const d = await world.decode({ kvBlocks: 32 });
  const head = world.gateway.head();
  await reserve(d, head, generationOf(promptOf(200), { maxNewTokens: 56 }));
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
    const wanted = expected(generation, firstToken === null ? 0 : 1, generation.maxNewTokens);
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
