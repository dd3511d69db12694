import { describe, expect, test } from "vitest";
import type { StepPlan } from "#native";
import { type DecodeMeans, type DecodeRows, planDecode } from "../../decode-node/decode-batcher.ts";
import { fakeRandom } from "../support/fake-clock.ts";

const sequence = (slot: number, promptLeft = 0, running = false, changes: Partial<DecodeRows> = {}): DecodeRows => ({
  handle: { slot, generation: slot + 1 },
  promptLeft,
  running,
  length: 100,
  capacity: 900 + slot,
  limit: 4000,
  ...changes,
});

const means = (budget: number, changes: Partial<DecodeMeans> = {}): DecodeMeans => ({
  budget,
  chunk: budget,
  steps: 4,
  drafts: 0,
  blocksAvailable: () => 1000,
  ...changes,
});

const planned = (rows: readonly DecodeRows[], inFlight: readonly StepPlan[], budget: number) =>
  planDecode(rows, inFlight, means(budget)).plan;

/** An assertion cheap enough for loops. */
function must(holds: boolean, claim: string): void {
  if (!holds) throw new Error(claim);
}

/** Entries of a plan as [slot, rows, reserve]; fails on a slot planned twice. */
function entriesOf(plan: StepPlan): number[][] {
  must(new Set(plan.map(({ handle }) => handle.slot)).size === plan.length, "a slot is planned twice");
  return plan.map(({ handle, rows, reserve }) => [handle.slot, rows, reserve]);
}

test("who has its prompt joins once, prompts share what the batch leaves of the budget", () => {
  const rows = [sequence(0), sequence(1, 300), sequence(2, 0, true), sequence(3, 40)];
  const first = planned(rows, [], 32);
  expect(entriesOf(first)).toEqual([
    [0, 0, 900],
    [1, 30, 0],
  ]);
  expect(entriesOf(planned(rows, [first], 32))).toEqual([[1, 30, 0]]);
  expect(planned([sequence(2, 0, true)], [], 32)).toEqual([]);
  expect(planned([], [], 32)).toEqual([]);
});

test("the step with the last rows of a prompt is the last one before it joins", () => {
  const rows = [sequence(0, 40)];
  const first = planned(rows, [], 32);
  const second = planned(rows, [first], 32);
  expect([first, second].map(entriesOf)).toEqual([[[0, 32, 0]], [[0, 8, 900]]]);
  expect(planned(rows, [first, second], 32)).toEqual([]);
});

test("plans in flight of an earlier user of the slot do not count", () => {
  const earlier = [{ handle: { slot: 0, generation: 99 }, rows: 0, reserve: 64 }];
  expect(entriesOf(planned([sequence(0)], [earlier], 8))).toEqual([[0, 0, 900]]);
});

test("prompts get no more rows than a chunk beside streams, and every stream its row", () => {
  const rows = [sequence(0, 0, true), sequence(1, 500), sequence(2, 500)];
  expect(entriesOf(planDecode(rows, [], means(64, { chunk: 20 })).plan)).toEqual([[1, 20, 0]]);
});

test("a round is made room for when the one before it is used up, for everybody at once", () => {
  const at = (slot: number, length: number, capacity: number) => sequence(slot, 0, true, { length, capacity });
  expect(planned([at(0, 100, 108), at(1, 100, 105)], [], 32).length).toBe(0);
  const due = planned([at(0, 102, 108), at(1, 104, 108)], [], 32);
  expect(entriesOf(due)).toEqual([
    [0, 0, 110],
    [1, 0, 112],
  ]);
  expect(planned([at(0, 102, 108), at(1, 104, 108)], [due], 32)).toEqual([]);
  const last = sequence(2, 0, true, { length: 3990, capacity: 3994 });
  expect(entriesOf(planned([last], [], 32))).toEqual([[2, 0, 3998]]);
  expect(planned([{ ...last, capacity: 4000, length: 3999 }], [], 32)).toEqual([]);
});

describe("when blocks run out", () => {
  const full = (slot: number, length: number) => sequence(slot, 0, true, { length, capacity: 128 });
  const without = means(32, { blocksAvailable: () => 0 });

  test("the more entitled grow first", () => {
    const { plan, preempt } = planDecode([full(0, 127), full(1, 127)], [], means(32, { blocksAvailable: () => 1 }));
    expect(entriesOf(plan)).toEqual([[0, 0, 135]]);
    expect(preempt).toBeNull();
  });

  test("who is about to sit out has the last one preempted, be that a stream or a prompt", () => {
    expect(planDecode([full(0, 127), full(1, 90), full(2, 90)], [], without).preempt).toEqual(full(2, 90).handle);
    expect(planDecode([full(0, 127), sequence(1, 300)], [], without).preempt).toEqual(sequence(1).handle);
  });

  test("the last one itself sits out; who has room left has nobody preempted", () => {
    expect(planDecode([full(0, 90), full(1, 127)], [], without)).toEqual({ plan: [], preempt: null });
    expect(planDecode([full(0, 124), full(1, 90)], [], without).preempt).toBeNull();
  });
});

describe("over random loads", () => {
  for (let seed = 1; seed <= 40; seed++) {
    test(`everybody joins, budgets hold, the batch is never held up by prompts (seed ${seed})`, () => {
      const random = fakeRandom(seed);
      const below = (limit: number) => Math.floor(random.uniform() * limit);
      const budget = 24 + below(100);
      const live: { slot: number; promptLeft: number; running: boolean; tokensLeft: number }[] = [];
      const inFlight: StepPlan[] = [];
      let slot = 0;
      for (let step = 0; step < 800; step++) {
        if (step < 300 && random.uniform() < 0.4 && live.length < 24) {
          const promptLeft = random.uniform() < 0.5 ? 0 : 1 + below(400);
          live.push({ slot: slot++, promptLeft, running: false, tokensLeft: 1 + below(40) });
        }
        while (inFlight.length < 2) {
          const rows = live.map((one) => sequence(one.slot, one.promptLeft, one.running));
          const plan = planned(rows, inFlight, budget);
          if (plan.length === 0) break;
          inFlight.push(plan);
        }
        const joined: number[] = [];
        let total = live.filter(({ running }) => running).length;
        for (const [done, rows, reserve] of entriesOf(inFlight.shift() ?? []) as [number, number, number][]) {
          const one = live.find((other) => other.slot === done);
          if (one === undefined) continue;
          total += Math.max(rows, 1);
          must(rows === 0 || !one.running, "rows of a sequence that decodes");
          one.promptLeft -= rows;
          must(one.promptLeft >= 0, "rows that are not there");
          if (reserve > 0) {
            must(one.promptLeft === 0 && !one.running, "joins twice or too early");
            joined.push(done);
          }
        }
        must(total <= budget, "the budget is exceeded");
        for (const one of [...live]) {
          if (joined.includes(one.slot)) one.running = true;
          if (one.running && --one.tokensLeft === 0) live.splice(live.indexOf(one), 1);
        }
      }
      expect(live).toEqual([]);
      expect(inFlight).toEqual([]);
    });
  }
});
