import { expect, test } from "vitest";
import { PAIR_COOL_MS } from "../../control-plane/fleet/fleet.ts";
import { answerOf, FlowWorld } from "../support/flow-world.ts";
import { refusal } from "../support/scripted-rank.ts";

test("a way between two ranks that failed is tried by one request at a time, and by all after a success", async () => {
  const world = new FlowWorld();
  const { p, d } = await world.fleetOf(1, 2);
  let broken = true;
  let tried = 0;
  d[0]!.onStart = () => {
    tried++;
    return broken ? refusal("transfer_failed") : null;
  };
  // The other decode rank has no room for more than one, so that the broken way is always tempting.
  d[1]!.load = { ...d[1]!.load, requests: 6 };
  d[1]!.beat();
  await world.clock.settle();
  await world.end(world.send());
  expect(tried).toBe(1);

  const send = (count: number) => Array.from({ length: count }, () => world.send());
  for (const ride of send(5)) await world.end(ride);
  expect(tried).toBe(1);

  await world.clock.advance(PAIR_COOL_MS);
  for (const ride of send(5)) expect((await world.end(ride)).tokens).toEqual(answerOf(20));
  expect(tried).toBe(2);

  broken = false;
  await world.clock.advance(PAIR_COOL_MS);
  await world.end(world.send());
  expect(tried).toBe(3);
  for (const ride of send(5)) await world.end(ride);
  expect(tried).toBeGreaterThan(5);
  expect(p[0]!.held.size).toBe(0);
  expect(await world.heldAfterwards()).toEqual([]);
});
