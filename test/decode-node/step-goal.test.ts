import { afterEach, beforeEach, expect, test } from "vitest";
import { generationOf, promptOf } from "../support/generation.ts";
import { NodeWorld, type RankUnderTest, refused } from "../support/node-world.ts";

/** A goal for the time of a step: a rank takes no further stream while its steps would be longer. */

let world: NodeWorld;
beforeEach(() => {
  world = new NodeWorld();
});
afterEach(async () => {
  await world.close();
});

const endless = (salt: number) => generationOf(promptOf(20, salt), { maxNewTokens: 400 });

/** Streams taken one after the other, each at work before the next is offered, until one is refused. */
async function fill(
  d: RankUnderTest,
  most: number,
): Promise<{ heads: ReturnType<NodeWorld["gateway"]["head"]>[]; last: unknown }> {
  const heads = [];
  for (let salt = 0; salt < most; salt++) {
    const head = world.gateway.head();
    const reply = await world.settle(world.gateway.reserve(d.rankId, d.epoch, head, endless(salt)));
    if (reply.kind !== "reserved") return { heads, last: reply };
    heads.push(head);
    await world.settle(world.gateway.start(reply.reservation, head, null));
    await world.clock.advance(200);
  }
  return { heads, last: null };
}

test("requests are refused as soon as one more would make a step too long, and taken again when it would not", async () => {
  // A step takes 4 ms and 2 ms for each stream: three fit into 11 ms, and a fourth does not.
  const d = await world.decode({ model: { stepMs: 4, rowMs: 2 }, tpotGoalMs: 11 });
  const { heads, last } = await fill(d, 8);
  expect(heads).toHaveLength(3);
  expect(last).toEqual(refused("busy"));
  expect(last).toMatchObject({
    detail: expect.stringMatching(/a step would take 12 ms, the goal is 11 ms/),
    retryAfterMs: expect.toSatisfy((ms) => ms > 0),
  });
  await world.settle(world.gateway.cancel(d.rankId, heads[0]!));
  await world.clock.advance(100);
  const again = world.gateway.head();
  const reply = await world.settle(world.gateway.reserve(d.rankId, d.epoch, again, endless(9)));
  expect(reply.kind).toBe("reserved");
  for (const head of [...heads, again]) await world.settle(world.gateway.cancel(d.rankId, head));
});

test("without a goal all are taken, and with one that even a lone stream misses, one at a time", async () => {
  const d = await world.decode({ model: { stepMs: 4, rowMs: 2 } });
  const all = await fill(d, 8);
  expect(all.last).toBeNull();
  const slow = await world.decode({ model: { stepMs: 40, rowMs: 2 }, tpotGoalMs: 11 });
  const one = await fill(slow, 2);
  expect(one.heads).toHaveLength(1);
  expect(one.last).toEqual(refused("busy"));
  for (const head of all.heads) await world.settle(world.gateway.cancel(d.rankId, head));
  await world.settle(world.gateway.cancel(slow.rankId, one.heads[0]!));
});
