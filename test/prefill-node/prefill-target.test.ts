import { afterEach, beforeEach, expect, test } from "vitest";
import type { Reservation } from "#protocol/kv.ts";
import type { Generation, RequestHead } from "#protocol/request.ts";
import type { PrefillNode } from "../../prefill-node/prefill-node.ts";
import { generationOf, promptOf } from "../support/generation.ts";
import { NodeWorld, type RankUnderTest } from "../support/node-world.ts";

/** Prompts that are computed before anybody knows where their pages go. */

let world: NodeWorld;

beforeEach(() => {
  world = new NodeWorld();
});
afterEach(async () => {
  await world.close();
});

type Prefill = RankUnderTest<PrefillNode>;

const refused = (code: string) => expect.objectContaining({ kind: "refused", code });
const free = (d: RankUnderTest, head: RequestHead) => world.settle(world.gateway.cancel(d.rankId, head));

/** Sends work whose destination is not known yet, and waits for its first token. */
async function compute(p: Prefill, head: RequestHead, generation: Generation, deadlineMs?: number): Promise<void> {
  await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, null, deadlineMs));
  await world.until(() => world.gateway.outcomesOf(head).length > 0);
}

test("a prompt without a destination is computed, told, and kept until one is named", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(300));
  await compute(p, head, generation);
  expect(world.gateway.outcomesOf(head)).toMatchObject([{ kind: "prefill-done" }]);
  await world.clock.advance(100);
  expect(p.engine.stats()).toMatchObject({ sequences: 1, pagesSent: 0 });
  const reservation = await world.reserve(d, head, generation);
  const direct = () => world.settle(world.gateway.target(p.rankId, p.epoch, head, reservation));
  expect(await direct()).toEqual({ kind: "done" });
  await world.clock.advance(20);
  expect(d.engine.stats().pagesReceived).toBe(5 * 6);
  expect(p.engine.stats().sequences).toBe(0);
  expect(await direct()).toEqual(refused("cancelled"));
  await free(d, head);
});

test("a destination named while the prompt is computed gets what is there and what follows", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(300));
  const reservation = await world.reserve(d, head, generation);
  await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, null));
  await world.until(() => p.engine.stats().steps === 1);
  expect(await world.settle(world.gateway.target(p.rankId, p.epoch, head, reservation))).toEqual({ kind: "done" });
  expect(await world.settle(world.gateway.target(p.rankId, p.epoch, head, reservation))).toEqual({ kind: "done" });
  expect(await p.metric('margay_duplicate_messages_total{kind="prefill-target"}')).toBe(1);
  await world.until(() => world.gateway.outcomesOf(head).length > 0);
  await world.clock.advance(20);
  expect(d.engine.stats().pagesReceived).toBe(5 * 6);
  expect(p.engine.stats()).toMatchObject({ sequences: 0, pagesSent: 5 * 6 });
  await free(d, head);
});

test("a destination of another epoch, attempt or shape is refused, and the prompt goes on", async () => {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const generation = generationOf(promptOf(100));
  const reservation = await world.reserve(d, head, generation);
  await compute(p, head, generation);
  const direct = (epoch: number, who: RequestHead, to: Reservation) =>
    world.settle(world.gateway.target(p.rankId, epoch, who, to));
  expect(await direct(p.epoch + 1, head, reservation)).toEqual(refused("stale_epoch"));
  expect(await direct(p.epoch, { ...head, attempt: 1 }, reservation)).toEqual(refused("cancelled"));
  expect(await direct(p.epoch, head, { ...reservation, cachedTokens: 100 })).toEqual(refused("invalid_request"));
  expect(await direct(p.epoch, head, reservation)).toEqual({ kind: "done" });
  await free(d, head);
});

test("nobody names a destination: the pages are free at the deadline, or when the request is cancelled", async () => {
  const p = await world.prefill();
  const [late, left] = [world.gateway.head(), world.gateway.head()];
  await compute(p, late, generationOf(promptOf(100)), world.clock.now() + 2_000);
  await compute(p, left, generationOf(promptOf(100, 1)));
  expect(p.held()).toBe(4);
  expect(await world.settle(world.gateway.cancel(p.rankId, left))).toMatchObject({ known: true });
  expect(p.held()).toBe(2);
  await world.clock.advance(2_000);
  expect(world.gateway.outcomesOf(late)).toMatchObject([
    { kind: "prefill-done" },
    { kind: "prefill-failed", code: "timeout" },
  ]);
  expect(p.held()).toBe(0);
});

test("a first token that ends the request needs no destination", async () => {
  const p = await world.prefill();
  const head = world.gateway.head();
  await compute(p, head, generationOf(promptOf(100), { maxNewTokens: 1 }));
  expect(world.gateway.outcomesOf(head)).toMatchObject([{ kind: "prefill-done", finish: "length" }]);
  await world.clock.advance(5);
  expect(p.held()).toBe(0);
});
