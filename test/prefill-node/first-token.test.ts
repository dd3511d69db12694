import { afterEach, beforeEach, expect, test } from "vitest";
import { FINISH } from "../../native/binding/native.ts";
import { generationOf, promptOf } from "../support/generation.ts";
import { NodeWorld, simTokens } from "../support/node-world.ts";

/** An engine with a draft layer tells the token after a prompt before its step is over. */

let world: NodeWorld;
beforeEach(() => {
  world = new NodeWorld();
});
afterEach(async () => {
  await world.close();
});

/** A prompt whose one step has begun. */
async function computing(maxNewTokens: number) {
  const [p, d] = [await world.prefill({ model: { stepMs: 40 } }), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(100), { maxNewTokens });
  const reservation = await world.reserve(d, head, generation);
  await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation));
  await world.clock.advance(10);
  expect(world.gateway.outcomesOf(head)).toEqual([]);
  const [token] = simTokens(generation, 0, 1);
  const hear = (finish: number, handle = { slot: 0, generation: 1 }) =>
    p.tell({ kind: "first-token", handle, token: token!, finish, computeMs: 9, logprobs: null });
  return { p, d, head, generation, reservation, token: token!, hear };
}

test("the owner has it at once and once, and decoding may begin while the step goes on", async () => {
  const { p, head, generation, reservation, token, hear } = await computing(6);
  const stepsBefore = p.engine.stats().steps;
  hear(FINISH.none);
  await world.clock.advance(1);
  expect(p.engine.stats().steps).toBe(stepsBefore);
  expect(world.gateway.outcomesOf(head)).toMatchObject([{ kind: "prefill-done", firstToken: token, finish: null }]);
  const started = world.gateway.start(reservation, head, token);
  expect((await world.settle(started)).kind).toBe("started");
  expect(p.engine.stats().steps).toBe(stepsBefore + 1);
  await world.done(head);
  expect(world.gateway.outcomesOf(head)).toHaveLength(1);
  expect(world.gateway.stream(head.requestId).tokens).toEqual(simTokens(generation, 1, 6));
});

test("one that ends the request says so at once, and the pages that nobody needs are let go", async () => {
  const { p, d, head, token, hear } = await computing(1);
  hear(FINISH.length);
  await world.clock.advance(1);
  expect(world.gateway.outcomesOf(head)).toMatchObject([{ kind: "prefill-done", firstToken: token, finish: "length" }]);
  await world.clock.advance(100);
  expect(world.gateway.outcomesOf(head)).toHaveLength(1);
  expect(p.held()).toBe(0);
  await world.settle(world.gateway.cancel(d.rankId, head));
});

test("one of a sequence that is gone, or was another's, is nobody's", async () => {
  const { p, d, head, hear } = await computing(6);
  hear(FINISH.none, { slot: 0, generation: 9 });
  hear(FINISH.none, { slot: 5, generation: 1 });
  await world.settle(world.gateway.cancel(p.rankId, head));
  hear(FINISH.none);
  await world.clock.advance(100);
  expect(world.gateway.outcomesOf(head).filter(({ kind }) => kind === "prefill-done")).toEqual([]);
  await world.settle(world.gateway.cancel(d.rankId, head));
});
