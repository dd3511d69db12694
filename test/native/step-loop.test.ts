import { expect, test } from "vitest";
import type { StepResult } from "../../native/binding/native.ts";
import { createStepLoop } from "../../native/binding/native.ts";

const handle = { slot: 0, generation: 1 };
const other = { slot: 1, generation: 1 };

/** A loop over an engine that only notes what it is given, and over a list of plans to make. */
function harness(plans: (Int32Array | null)[], onResult: (loop: () => void) => void = () => {}) {
  const submitted: Int32Array[] = [];
  const seen: number[] = [];
  const faults: unknown[] = [];
  const engine = {
    submit(plan: Int32Array): number {
      if (plan[0] === 99) throw new Error("refused");
      return submitted.push(plan) - 1;
    },
  };
  const loop = createStepLoop({
    engine,
    plan(inFlight) {
      seen.push(inFlight.length);
      return plans.shift() ?? null;
    },
    onResult: () => onResult(() => loop.wake()),
    onFault: (error) => faults.push(error),
  });
  const settle = () => loop.settle({} as StepResult);
  return { loop, submitted, seen, faults, settle };
}

const planFor = ({ slot, generation }: typeof handle) => Int32Array.of(slot, generation, 1);

test("two plans are in flight at most, and the planner sees those before it", () => {
  const { loop, submitted, seen, settle } = harness([planFor(handle), planFor(handle), planFor(handle)]);
  loop.wake();
  expect([submitted.length, seen]).toEqual([2, [0, 1]]);
  loop.wake();
  expect(submitted.length).toBe(2);
  settle();
  expect([submitted.length, seen]).toEqual([3, [0, 1, 1]]);
});

test("nothing to plan is asked for again when woken, and after every result", () => {
  const { loop, submitted, seen, settle } = harness([null, planFor(handle), null, null, planFor(handle)]);
  loop.wake();
  expect(submitted.length).toBe(0);
  loop.wake();
  expect([submitted.length, seen]).toEqual([1, [0, 0, 1]]);
  settle();
  expect(submitted.length).toBe(1);
  loop.wake();
  expect(submitted.length).toBe(2);
});

test("a result is obeyed whole before anything is planned on it", () => {
  const order: string[] = [];
  const { loop, seen, settle } = harness([planFor(handle), planFor(handle), planFor(handle)], (wake) => {
    order.push("begin");
    wake();
    order.push(`planned ${seen.length}`);
  });
  loop.wake();
  settle();
  expect(order).toEqual(["begin", "planned 2"]);
  expect(seen.length).toBe(3);
});

test("a closed sequence is released when no step in flight names it", async () => {
  const { loop, settle } = harness([planFor(handle), planFor(other)]);
  loop.wake();
  const released: string[] = [];
  void loop.released(handle).then(() => released.push("first"));
  void loop.released(other).then(() => released.push("second"));
  await loop.released({ slot: 7, generation: 1 });
  expect(released).toEqual([]);
  settle();
  await loop.released(handle);
  expect(released).toEqual(["first"]);
  settle();
  await loop.released(other);
  expect(released).toEqual(["first", "second"]);
});

test("a stopped loop plans nothing more, and what is in flight still settles", async () => {
  const { loop, submitted, settle } = harness([planFor(handle), planFor(handle), planFor(handle)]);
  loop.wake();
  loop.stop();
  settle();
  loop.wake();
  expect(submitted.length).toBe(2);
  const released = loop.released(handle);
  settle();
  await released;
});

test("a refused plan is told once and ends the planning", () => {
  const { loop, submitted, faults } = harness([planFor(handle), Int32Array.of(99, 1, 1), planFor(handle)]);
  loop.wake();
  expect(submitted.length).toBe(1);
  expect(faults).toEqual([expect.objectContaining({ message: "refused" })]);
  loop.wake();
  expect([submitted.length, faults.length]).toEqual([1, 1]);
});
