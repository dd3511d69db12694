import { afterEach, beforeEach, expect, test } from "vitest";
import type { Reservation } from "#protocol/kv.ts";
import type { Generation } from "#protocol/request.ts";
import { generationOf, promptOf } from "../support/generation.ts";
import { NodeWorld, refused, simTokens } from "../support/node-world.ts";

let world: NodeWorld;

beforeEach(() => {
  world = new NodeWorld();
});
afterEach(async () => {
  await world.close();
});

test("the same reservation and the same start twice are answered alike and obeyed once", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(50), { maxNewTokens: 10 });
  const { reservation, outcome, started } = await world.serve(p, d, head, generation);
  expect(await world.reserve(d, head, generation)).toEqual(reservation);
  expect(d.engine.stats().sequences).toBe(1);
  expect(await world.settle(world.gateway.start(reservation, head, outcome.firstToken))).toEqual(started);
  await world.done(head);
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
  await world.reserve(d, holder, good);
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
  const reservation = await world.reserve(d, head, generationOf(promptOf(20), { maxNewTokens: 5 }));
  const ask = (changes: Partial<Reservation>, who = head) =>
    world.settle(world.gateway.start({ ...reservation, ...changes }, who, null));
  const { slot, generation } = reservation.handle;
  expect(await ask({ handle: { slot, generation: generation + 1 } })).toEqual(refused("unknown_request"));
  expect(await ask({ handle: { slot: slot + 1, generation } })).toEqual(refused("unknown_request"));
  expect(await ask({ epoch: d.epoch + 1 })).toEqual(refused("stale_epoch"));
  expect(await ask({}, world.gateway.head())).toEqual(refused("unknown_request"));
  expect(await ask({}, world.gateway.head(1, head.requestId))).toEqual(refused("unknown_request"));
  expect((await ask({})).kind).toBe("started");
  await world.done(head);
});

test("a first token that is no token or leaves nothing to generate is refused, and the pages are free", async () => {
  const d = await world.decode();
  for (const [token, maxNewTokens] of [
    [2048, 8],
    [5, 1],
  ] as const) {
    const head = world.gateway.head();
    const reservation = await world.reserve(d, head, generationOf(promptOf(20), { maxNewTokens }));
    expect(await world.settle(world.gateway.start(reservation, head, token))).toEqual(refused("invalid_request"));
    await world.clock.advance(2);
    expect(d.held()).toBe(0);
  }
});

test("a start that comes long after the last page begins at once", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(150), { maxNewTokens: 4 });
  const reservation = await world.reserve(d, head, generation);
  await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation));
  await world.clock.advance(1_000);
  const outcome = world.gateway.outcomesOf(head)[0]!;
  if (outcome.kind !== "prefill-done") throw new Error(outcome.code);
  const startMs = world.clock.now();
  const started = await world.settle(world.gateway.start(reservation, head, outcome.firstToken));
  expect(started).toMatchObject({ kind: "started", pages: 18 });
  expect(world.clock.now() - startMs).toBeLessThanOrEqual(1);
  await world.done(head);
});

test("pages that do not come until the transfer deadline fail the start, and everything is free", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  world.fabric.fault = (page) => (page.index === 1 ? "lose" : "deliver");
  const head = world.gateway.head();
  const generation = generationOf(promptOf(150));
  const reservation = await world.reserve(d, head, generation);
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
  const reservation = await world.reserve(d, head, generation, world.clock.now() + 2_000);
  await world.clock.advance(1_990);
  expect(d.held()).toBeGreaterThan(0);
  await world.clock.advance(20);
  expect(d.held()).toBe(0);
  expect(await world.settle(world.gateway.start(reservation, head, null))).toEqual(refused("reservation_expired"));
  const again = await world.settle(world.gateway.reserve(d.rankId, d.epoch, head, generation));
  expect(again).toEqual(refused("reservation_expired"));
  await world.reserve(d, world.gateway.head(1, head.requestId), generation);
  await world.settle(world.gateway.cancel(d.rankId, world.gateway.head(1, head.requestId)));
});

test("a reservation that lapses while its start waits for pages ends the start", async () => {
  const d = await world.decode();
  const head = world.gateway.head();
  const reservation = await world.reserve(d, head, generationOf(promptOf(100)), world.clock.now() + 1_000);
  const reply = world.gateway.start(reservation, head, 100, world.clock.now() + 9_000);
  expect(await world.settle(reply)).toEqual(refused("reservation_expired"));
  expect(d.held()).toBe(0);
});

test("another prefill rank may fill the same reservation after the first one failed", async () => {
  const [p, q, d] = [await world.prefill(), await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(300), { maxNewTokens: 8 });
  const reservation = await world.reserve(d, head, generation);
  world.fabric.fault = (page) => (page.from === p.rankId && page.index === 2 ? "lose" : "deliver");
  await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation));
  await world.until(() => d.engine.stats().pagesReceived > 0);
  await world.settle(world.gateway.cancel(p.rankId, head));
  await world.settle(world.gateway.prefill(q.rankId, q.epoch, head, generation, reservation));
  await world.until(() => world.gateway.outcomes.some((outcome) => outcome.rankId === q.rankId));
  const outcome = world.gateway.outcomes.find((one) => one.rankId === q.rankId)!;
  if (outcome.kind !== "prefill-done") throw new Error(outcome.code);
  expect((await world.settle(world.gateway.start(reservation, head, outcome.firstToken))).kind).toBe("started");
  await world.done(head);
  expect(world.gateway.stream(head.requestId).tokens).toEqual(simTokens(generation, 1, 8));
  expect(d.engine.stats().duplicatePages).toBeGreaterThan(0);
});

test("what a failed prefill left behind is completed by the decode rank itself", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(300), { maxNewTokens: 4 });
  const reservation = await world.reserve(d, head, generation);
  world.fabric.fault = (page) => (page.index >= 2 ? "lose" : "deliver");
  await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation));
  await world.until(() => d.engine.stats().pagesReceived === 12);
  await world.settle(world.gateway.cancel(p.rankId, head));
  expect((await world.settle(world.gateway.start(reservation, head, null))).kind).toBe("started");
  await world.done(head);
  const stream = world.gateway.stream(head.requestId);
  expect(stream.tokens).toEqual(simTokens(generation, 0, 4));
  expect(stream.done).toMatchObject({ computedTokens: 300 - 128 });
  await world.clock.advance(11_000);
});
