import { expect, test } from "vitest";
import { answerOf, FlowWorld } from "../support/flow-world.ts";
import { refusal } from "../support/scripted-rank.ts";

/** The prompt is computed before the decode rank has answered. */

test("the prompt is computed while the decode rank is asked, and the first token does not wait for its answer", async () => {
  const world = new FlowWorld();
  const { p, d } = await world.fleetOf(1, 1);
  const answered = Promise.withResolvers<void>();
  d[0]!.late = answered.promise;
  const ride = world.send();
  await world.until(() => ride.tokens.length === 1);
  expect([p[0]!.count("prefill-target"), d[0]!.count("start-decode")]).toEqual([0, 0]);
  answered.resolve();
  await world.end(ride);
  expect(ride.tokens).toEqual(answerOf(20));
  expect(p[0]!.count("prefill-target")).toBe(1);
  expect(await world.heldAfterwards()).toEqual([]);
});

test("the prefill rank refuses to send before it is done: the same reservation, another prefill rank, told where at once", async () => {
  const world = new FlowWorld();
  const { p, d } = await world.fleetOf(2, 1);
  for (const rank of p) rank.onTarget = () => refusal("internal");
  const ride = await world.end(world.send());
  expect(ride.tokens).toEqual(answerOf(20));
  expect(ride.settled).toMatchObject({ attempts: 1 });
  expect([p[0]!.count("prefill-work"), p[1]!.count("prefill-work")]).toEqual([1, 1]);
  expect(p[0]!.count("prefill-target") + p[1]!.count("prefill-target")).toBe(1);
  expect(d[0]!.count("reserve-kv")).toBe(1);
  expect(await world.heldAfterwards()).toEqual([]);
});

test("the prefill rank refuses to send after its first token was told: placed again, and the token is not repeated", async () => {
  const world = new FlowWorld();
  const { p, d } = await world.fleetOf(2, 1);
  const answered = Promise.withResolvers<void>();
  d[0]!.late = answered.promise;
  let asked = 0;
  for (const rank of p) rank.onTarget = () => (asked++ === 0 ? refusal("cancelled") : null);
  const ride = world.send();
  await world.until(() => ride.tokens.length === 1);
  d[0]!.late = null;
  d[0]!.onStart = () => (asked < 2 ? new Promise(() => {}) : null);
  answered.resolve();
  await world.end(ride);
  expect(ride.tokens).toEqual(answerOf(20));
  expect(ride.settled).toMatchObject({ attempts: 2 });
  expect(d[0]!.count("reserve-kv")).toBe(2);
  expect(await world.heldAfterwards()).toEqual([]);
});
