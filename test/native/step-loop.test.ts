import { expect, test } from "vitest";
import type { SequenceHandle } from "#protocol/kv.ts";
import { createStepLoop, FINISH, type StepPlan, type StepResult } from "../../native/binding/native.ts";

const handle = { slot: 0, generation: 1 };
const other = { slot: 1, generation: 1 };

/** A loop over an engine that only notes what it is given, and over a list of plans to make. */
function harness(plans: StepPlan[], onResult: (loop: () => void) => void = () => {}) {
  const submitted: Int32Array[] = [];
  const seen: number[] = [];
  const told: StepPlan[] = [];
  const faults: unknown[] = [];
  const running = new Set<number>();
  const engine = {
    submit(plan: Int32Array): number {
      if (plan[0] === 99) throw new Error("refused");
      return submitted.push(plan) - 1;
    },
    closeSequence: ({ slot }: SequenceHandle) => running.has(slot),
  };
  const loop = createStepLoop({
    engine,
    plan(inFlight) {
      seen.push(inFlight.length);
      return plans.shift() ?? [];
    },
    onResult(_, plan) {
      told.push(plan);
      onResult(() => loop.wake());
    },
    onFault: (error) => faults.push(error),
  });
  /** A step ends: a plan's, or (-1) one that repeated the batch. */
  const settle = (plan: number, entries: readonly number[] = []) =>
    loop.settle({ plan, entries: Int32Array.from(entries) } as unknown as StepResult);
  return { loop, submitted, seen, told, faults, running, settle };
}

const planFor = (handle: SequenceHandle): StepPlan => [{ handle, rows: 1, reserve: 0 }];

test("two plans are in flight at most, and the planner sees those before it", () => {
  const { loop, submitted, seen, settle } = harness([planFor(handle), planFor(handle), planFor(handle)]);
  loop.wake();
  expect([submitted.length, seen]).toEqual([2, [0, 1]]);
  loop.wake();
  expect(submitted.length).toBe(2);
  settle(0);
  expect([submitted.length, seen]).toEqual([3, [0, 1, 1]]);
});

test("a step that repeated the batch takes no plan out of flight", () => {
  const { loop, submitted, told, settle } = harness([planFor(handle), planFor(other), planFor(handle)]);
  loop.wake();
  settle(-1);
  expect([submitted.length, told]).toEqual([2, [[]]]);
  settle(0);
  expect([submitted.length, told]).toEqual([3, [[], planFor(handle)]]);
});

test("nothing to plan is asked for again when woken, and after every result", () => {
  const { loop, submitted, seen, settle } = harness([[], planFor(handle), [], [], planFor(handle)]);
  loop.wake();
  expect(submitted.length).toBe(0);
  loop.wake();
  expect([submitted.length, seen]).toEqual([1, [0, 0, 1]]);
  settle(0);
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
  settle(0);
  expect(order).toEqual(["begin", "planned 2"]);
  expect(seen.length).toBe(3);
});

test("a sequence closed in the middle of a step is released with that step's result, any other at once", async () => {
  const { loop, running, settle } = harness([]);
  const released: string[] = [];
  running.add(handle.slot);
  void loop.close(handle, true).then(() => released.push("first"));
  await loop.close(other, true);
  expect(released).toEqual([]);
  settle(-1, [handle.slot, handle.generation + 1, 0, 0, FINISH.skipped, 0]);
  settle(-1, [other.slot, other.generation, 1, 1, FINISH.none, 9]);
  await Promise.resolve();
  expect(released).toEqual([]);
  settle(-1, [handle.slot, handle.generation, 0, 0, FINISH.skipped, 0]);
  await Promise.resolve();
  expect(released).toEqual(["first"]);
});

test("a stopped loop plans nothing more, and steps still settle", () => {
  const { loop, submitted, told, settle } = harness([planFor(handle), planFor(handle), planFor(handle)]);
  loop.wake();
  loop.stop();
  settle(0);
  loop.wake();
  settle(1);
  expect([submitted.length, told.length]).toEqual([2, 2]);
});

test("a refused plan is told once and ends the planning", () => {
  const { loop, submitted, faults } = harness([planFor(handle), planFor({ slot: 99, generation: 1 }), planFor(handle)]);
  loop.wake();
  expect(submitted.length).toBe(1);
  expect(faults).toEqual([expect.objectContaining({ message: "refused" })]);
  loop.wake();
  expect([submitted.length, faults.length]).toEqual([1, 1]);
});

test("a sequence of an engine that has failed is closed: its last steps may settle before that is heard of", async () => {
  const gone = Object.assign(new Error("the engine has failed"), { code: "closed" });
  const stale = Object.assign(new Error("slot 0 has moved on"), { code: "stale_handle" });
  let thrown = gone;
  const engine = {
    submit: () => 0,
    closeSequence: (): boolean => {
      throw thrown;
    },
  };
  const loop = createStepLoop({ engine, plan: () => [], onResult: () => {}, onFault: () => {} });
  await loop.close(handle, true);
  thrown = stale;
  expect(() => loop.close(handle, true)).toThrow("moved on");
});
