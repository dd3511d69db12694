import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { RequestHead } from "#protocol/request.ts";
import type { PrefillNode } from "../../prefill-node/prefill-node.ts";
import { findLead, leadIsOver } from "../../prefill-node/prefix-lead.ts";
import { generationOf, promptOf } from "../support/generation.ts";
import { NodeWorld, type RankUnderTest } from "../support/node-world.ts";

/** Prompts that begin alike and arrive while the first of them is computed. */

describe("the lead of a prompt", () => {
  const older = (length: number, left: number, seed = 0, phase = "computing") => ({
    tokens: promptOf(length, seed),
    left,
    phase,
  });

  test("is the older prompt with most blocks in common", () => {
    const [short, long, other] = [older(130, 130), older(300, 300), older(300, 300, 9)];
    expect(findLead(promptOf(250), 0, [short, long, other])).toEqual({ prompt: long, tokens: 192 });
    expect(findLead(promptOf(120), 0, [short, long])).toEqual({ prompt: short, tokens: 64 });
  });

  test("leaves a token to compute, and shares more than what is cached", () => {
    expect(findLead(promptOf(128), 0, [older(128, 128)])?.tokens).toBe(64);
    expect(findLead(promptOf(200), 192, [older(200, 200)])).toBeNull();
    expect(findLead(promptOf(60), 0, [older(60, 60)])).toBeNull();
    expect(findLead(promptOf(200, 1), 0, [older(200, 200)])).toBeNull();
  });

  test("is over when it has computed what is shared, or will not", () => {
    const over = (left: number, phase = "computing") => leadIsOver({ prompt: older(200, left, 0, phase), tokens: 128 });
    expect([over(200), over(73), over(72), over(0)]).toEqual([false, false, true, true]);
    expect([over(200, "leaving"), over(0, "sending"), over(8, "waiting")]).toEqual([true, true, false]);
  });
});

describe("on a rank", () => {
  let world: NodeWorld;
  let p: RankUnderTest<PrefillNode>;

  beforeEach(async () => {
    world = new NodeWorld();
    p = await world.prefill();
    // A rank that has measured itself admits more than two steps.
    const head = world.gateway.head();
    await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generationOf(promptOf(60, 5)), null));
    await ended([head]);
    await cancel([head]);
  });
  afterEach(async () => {
    await world.close();
  });

  const send = async (count: number, tokens = 300) => {
    const heads = Array.from({ length: count }, () => world.gateway.head());
    const generation = generationOf(promptOf(tokens));
    for (const head of heads) {
      const accepted = await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, null));
      expect(accepted).toMatchObject({ kind: "prefill-accepted" });
    }
    return heads;
  };
  const told = (head: RequestHead) => world.gateway.outcomesOf(head);
  const ended = (heads: readonly RequestHead[]) => world.until(() => heads.every((head) => told(head).length > 0));
  const cancel = (heads: readonly RequestHead[]) =>
    Promise.all(heads.map((head) => world.settle(world.gateway.cancel(p.rankId, head))));

  test("prompts that are alike are computed once, and all end with the same token", async () => {
    const heads = await send(4);
    await ended(heads);
    expect(p.engine.stats().prefillTokens).toBe(60 + 300 + 3 * (300 - 256));
    const [first, ...others] = heads.flatMap(told);
    expect(first).toMatchObject({ kind: "prefill-done", cachedTokens: 0 });
    for (const other of others) {
      expect(other).toMatchObject({
        kind: "prefill-done",
        cachedTokens: 256,
        firstToken: Reflect.get(first!, "firstToken"),
      });
    }
    await cancel(heads);
  });

  test("when the older one is cancelled the next computes, and the others wait for blocks no more", async () => {
    const heads = await send(3);
    await cancel(heads.slice(0, 1));
    await ended(heads.slice(1));
    expect(heads.slice(1).flatMap(told)).toMatchObject([{ kind: "prefill-done" }, { kind: "prefill-done" }]);
    await cancel(heads.slice(1));
  });

  test("a destination named while a prompt waits gets its pages", async () => {
    const d = await world.decode();
    const [older, head] = (await send(2)) as [RequestHead, RequestHead];
    const reservation = await world.reserve(d, head, generationOf(promptOf(300)));
    expect(await world.settle(world.gateway.target(p.rankId, p.epoch, head, reservation))).toEqual({ kind: "done" });
    await ended([older, head]);
    await world.clock.advance(20);
    expect(d.engine.stats().pagesReceived).toBe(5 * 6);
    await cancel([older]);
    await world.settle(world.gateway.cancel(d.rankId, head));
  });

  test("one that waits can be cancelled, and its place is free", async () => {
    const [older, head] = (await send(2)) as [RequestHead, RequestHead];
    await cancel([head]);
    expect(p.engine.stats().sequences).toBe(1);
    await ended([older]);
    await cancel([older]);
  });
});
