import { describe, expect, test } from "vitest";
import type { StepPlan } from "#native";
import { type PromptRows, planPrefill } from "../../prefill-node/prefill-batcher.ts";
import { fakeRandom } from "../support/fake-clock.ts";

const prompt = (slot: number, left: number): PromptRows => ({ handle: { slot, generation: slot + 1 }, left });

/** An assertion cheap enough for loops. */
function must(holds: boolean, claim: string): void {
  if (!holds) throw new Error(claim);
}

/** Entries of a plan as slot -> rows; fails on a slot planned twice. */
function rowsOf(plan: StepPlan): Map<number, number> {
  const rows = new Map<number, number>();
  for (const { handle, rows: planned, reserve } of plan) {
    must(!rows.has(handle.slot) && handle.generation === handle.slot + 1, "planned twice or under another's name");
    must(reserve === 0, "a prompt joins the batch");
    rows.set(handle.slot, planned);
  }
  return rows;
}

test("a lone prompt takes the whole budget, then what is left", () => {
  expect([...rowsOf(planPrefill([prompt(3, 100)], [], 64))]).toEqual([[3, 64]]);
  expect([...rowsOf(planPrefill([prompt(3, 36)], [], 64))]).toEqual([[3, 36]]);
  expect(planPrefill([], [], 64)).toEqual([]);
});

test("rows in flight are not planned again", () => {
  const first = planPrefill([prompt(0, 100)], [], 64);
  const second = planPrefill([prompt(0, 100)], [first], 64);
  expect([...rowsOf(second)]).toEqual([[0, 36]]);
  expect(planPrefill([prompt(0, 100)], [first, second], 64)).toEqual([]);
});

test("rows in flight of an earlier user of the slot are not mistaken for this one's", () => {
  expect([
    ...rowsOf(planPrefill([prompt(0, 10)], [[{ handle: { slot: 0, generation: 77 }, rows: 10, reserve: 0 }]], 64)),
  ]).toEqual([[0, 10]]);
});

test("short prompts pass a long one, which still gets half of every step", () => {
  const plan = rowsOf(planPrefill([prompt(0, 5000), prompt(1, 300), prompt(2, 20)], [], 64));
  expect([...plan]).toEqual([
    [0, 32],
    [1, 12],
    [2, 20],
  ]);
});

describe("over random loads", () => {
  for (let seed = 1; seed <= 40; seed++) {
    test(`every prompt ends in bounded steps, no step exceeds the budget (seed ${seed})`, () => {
      const random = fakeRandom(seed);
      const below = (limit: number) => Math.floor(random.uniform() * limit);
      const budget = 1 + below(300);
      const prompts: { slot: number; left: number; givenAt: number; ahead: number }[] = [];
      const inFlight: StepPlan[] = [];
      let slot = 0;
      for (let step = 0; step < 400; step++) {
        if (step < 200 && random.uniform() < 0.3 && prompts.length < 20) {
          const left = 1 + below(800);
          const ahead = prompts.reduce((sum, other) => sum + other.left, 0);
          prompts.push({ slot: slot++, left, givenAt: step, ahead });
        }
        while (inFlight.length < 2) {
          const rows = prompts.map(({ slot, left }) => prompt(slot, left));
          const plan = planPrefill(rows, inFlight, budget);
          const waiting = prompts.reduce((sum, { left }) => sum + left, 0) - totalOf(inFlight);
          // Work is conserved: a step is full, or it holds everything there is.
          must(totalOf(plan === null ? [] : [plan]) === Math.min(budget, waiting), "work is not conserved");
          if (plan.length === 0) break;
          inFlight.push(plan);
        }
        for (const [done, rows] of rowsOf(inFlight.shift() ?? [])) {
          const index = prompts.findIndex((other) => other.slot === done);
          prompts[index]!.left -= rows;
          must(prompts[index]!.left >= 0, "rows that are not there");
          if (prompts[index]!.left > 0) continue;
          // From arrival, the oldest prompts ahead end at half speed or better, then this one does.
          const { givenAt, ahead } = prompts[index]!;
          expect(step - givenAt).toBeLessThanOrEqual(Math.ceil((2 * (ahead + 800)) / budget) + 2 * 20 + 4);
          prompts.splice(index, 1);
        }
      }
    });
  }
});

function totalOf(plans: readonly StepPlan[]): number {
  return plans.reduce((sum, plan) => sum + [...rowsOf(plan).values()].reduce((a, b) => a + b, 0), 0);
}
