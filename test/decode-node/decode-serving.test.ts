import { afterEach, beforeEach, expect, test } from "vitest";
import { generationOf, promptOf } from "../support/generation.ts";
import { NodeWorld, simTokens } from "../support/node-world.ts";

let world: NodeWorld;

beforeEach(() => {
  world = new NodeWorld();
});
afterEach(async () => {
  await world.close();
});

test("pages come from a prefill rank, tokens go to the gateway, usage says who did what", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(150), { maxNewTokens: 20 });
  const { reservation, outcome, started } = await world.serve(p, d, head, generation);
  expect(reservation).toMatchObject({ rankId: d.rankId, epoch: d.epoch, cachedTokens: 0 });
  expect(reservation.endpoint).toMatchObject({ host: "127.0.0.1", port: d.engine.info.kvPort });
  expect(started).toMatchObject({ kind: "started", pages: 18, bytes: 18 * 32_768 });
  await world.done(head);
  const stream = world.gateway.stream(head.requestId);
  expect([outcome.firstToken, ...stream.tokens]).toEqual(simTokens(generation, 0, 20));
  expect(stream.seqs[0]).toBe(1);
  expect(stream.done).toMatchObject({ finish: "length", error: null, cachedTokens: 0, computedTokens: 0 });
  expect(stream.done!.decodeMs).toBeGreaterThan(0);
  expect(d.engine.stats().steps).toBe(19);
  expect(await d.metric('margay_prefill_tokens_total{role="decode"}')).toBe(0);
  expect(await d.metric('margay_decode_tokens_total{role="decode"}')).toBe(19);
  expect(await d.metric('margay_kv_transfer_bytes_total{role="decode",direction="received"}')).toBe(18 * 32_768);
  expect(await d.metric("margay_kv_transfer_seconds_count")).toBe(1);
});

test("a request that goes on elsewhere after its rank is lost gets the tokens it would have got", async () => {
  const [p, d, e] = [await world.prefill(), await world.decode(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(100), { maxNewTokens: 30 });
  const { outcome } = await world.serve(p, d, head, generation);
  await world.until(() => world.gateway.stream(head.requestId).tokens.length >= 10);
  await world.settle(world.gateway.cancel(d.rankId, head));
  const had = [outcome.firstToken, ...world.gateway.stream(head.requestId).tokens];
  const next = world.gateway.head(1, "moved");
  const moved = { ...generation, tokens: Int32Array.from([...generation.tokens, ...had]) };
  const second = await world.serve(p, e, next, moved);
  await world.done(next);
  const rest = world.gateway.stream(next.requestId);
  expect([...had, second.outcome.firstToken, ...rest.tokens]).toEqual(simTokens(generation, 0, 30));
  expect(rest.seqs[0]).toBe(had.length + 1);
});

test("a rank may compute the prompt itself, beside running streams that lose no step to it", async () => {
  const [p, d] = [await world.prefill(), await world.decode({ maxStepTokens: 16, model: { stepMs: 20 } })];
  const running = world.gateway.head();
  await world.serve(p, d, running, generationOf(promptOf(60), { maxNewTokens: 100 }));
  const head = world.gateway.head();
  const generation = generationOf(promptOf(200, 3), { maxNewTokens: 5 });
  const { started } = await world.serveLocally(d, head, generation);
  expect(started).toEqual({ kind: "started", pages: 0, bytes: 0, transferMs: 0 });
  const before = d.engine.stats().steps;
  const had = world.gateway.stream(running.requestId).tokens.length;
  await world.done(head);
  const stream = world.gateway.stream(head.requestId);
  expect(stream.tokens).toEqual(simTokens(generation, 0, 5));
  expect(stream.seqs[0]).toBe(0);
  expect(stream.done).toMatchObject({ finish: "length", cachedTokens: 0, computedTokens: 200 });
  const steps = d.engine.stats().steps - before;
  const gained = world.gateway.stream(running.requestId).tokens.length - had;
  expect(steps).toBeGreaterThanOrEqual(Math.ceil(200 / 15));
  expect(Math.abs(gained - steps)).toBeLessThanOrEqual(2);
  expect(await d.metric('margay_prefill_tokens_total{role="decode"}')).toBe(200);
  await world.done(running);
});

test("pages the rank has from an earlier request are neither moved nor computed again", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const tokens = promptOf(150);
  const [a, b, c] = [world.gateway.head(), world.gateway.head(), world.gateway.head()];
  await world.serve(p, d, a, generationOf(tokens, { maxNewTokens: 4 }));
  await world.done(a);
  const second = await world.serve(p, d, b, generationOf(tokens, { maxNewTokens: 4 }));
  expect(second.reservation.cachedTokens).toBe(128);
  expect(second.started).toMatchObject({ pages: 6 });
  await world.done(b);
  expect(world.gateway.stream(b.requestId).done).toMatchObject({ cachedTokens: 128, computedTokens: 0 });
  await world.serveLocally(d, c, generationOf(tokens, { maxNewTokens: 4 }));
  await world.done(c);
  expect(world.gateway.stream(c.requestId).done).toMatchObject({ cachedTokens: 128, computedTokens: 22 });
});

test("streams that outgrow the pool all end with their own text; one that gave way is told nothing twice", async () => {
  const [p, d] = [await world.prefill(), await world.decode({ kvBlocks: 10 })];
  const generations = [0, 1, 2].map((salt) => generationOf(promptOf(100, salt), { maxNewTokens: 300 }));
  const heads = generations.map(() => world.gateway.head());
  const first: (number | null)[] = [];
  for (const [i, head] of heads.entries()) {
    first.push((await world.serve(p, d, head, generations[i]!)).outcome.firstToken);
  }
  for (const head of heads) await world.done(head);
  for (const [i, head] of heads.entries()) {
    const stream = world.gateway.stream(head.requestId);
    expect([first[i], ...stream.tokens]).toEqual(simTokens(generations[i]!, 0, 300));
    expect(stream.done).toMatchObject({ finish: "length", error: null });
  }
  expect(await d.metric("margay_preemptions_total")).toBeGreaterThan(0);
  expect(d.engine.checkInvariants()).toBeNull();
});

test("a stream that joins gets one row a step from its first on, and those that run lose no step to it", async () => {
  const [p, d] = [await world.prefill(), await world.decode({ model: { stepMs: 10 } })];
  const running = [0, 1, 2].map(() => world.gateway.head());
  for (const [i, head] of running.entries()) {
    await world.serve(p, d, head, generationOf(promptOf(100, i), { maxNewTokens: 120 }));
  }
  const tokens = () => running.map((head) => world.gateway.stream(head.requestId).tokens.length);
  const [before, had] = [d.engine.stats(), tokens()];
  const joining = world.gateway.head();
  await world.serve(p, d, joining, generationOf(promptOf(150, 9), { maxNewTokens: 30 }));
  await world.done(joining);
  const after = d.engine.stats();
  const steps = after.steps - before.steps;
  for (const [i, count] of tokens().entries()) expect(Math.abs(count - had[i]! - steps)).toBeLessThanOrEqual(2);
  expect(after.prefillTokens - before.prefillTokens).toBe(0);
  expect(after.decodeTokens - before.decodeTokens).toBeLessThanOrEqual(3 * steps + 29);
  for (const head of running) await world.done(head);
});
