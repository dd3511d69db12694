import { describe, expect, test } from "vitest";
import { type DecodeRows, planDecode } from "../../decode-node/decode-batcher.ts";
import { fakeRandom } from "../support/fake-clock.ts";

const sequence = (slot: number, tokensLeft: number, promptLeft = 0, lastStep = -1): DecodeRows => ({
  handle: { slot, generation: slot + 1 },
  promptLeft,
  tokensLeft,
  lastStep,
});

/** An assertion cheap enough for loops. */
function must(holds: boolean, claim: string): void {
  if (!holds) throw new Error(claim);
}

/** Entries of a plan as slot -> rows; fails on a slot planned twice. */
function rowsOf(plan: Int32Array | null): Map<number, number> {
  const rows = new Map<number, number>();
  for (let at = 0; plan !== null && at < plan.length; at += 3) {
    must(!rows.has(plan[at]!) && plan[at + 1] === plan[at]! + 1, "a slot is planned twice or under another's name");
    rows.set(plan[at]!, plan[at + 2]!);
  }
  return rows;
}

test("every decoding sequence gets one row, prompts share what is left of the budget", () => {
  const plan = planDecode([sequence(0, 5), sequence(1, 9, 300), sequence(2, 5), sequence(3, 9, 40)], [], 32);
  expect([...rowsOf(plan)]).toEqual([
    [0, 1],
    [2, 1],
    [1, 30],
  ]);
  expect(planDecode([], [], 32)).toBeNull();
});

test("tokens about to be produced count: the last one is planned once", () => {
  const rows = [sequence(0, 2)];
  const first = planDecode(rows, [], 8)!;
  const second = planDecode(rows, [first], 8)!;
  expect([...rowsOf(second)]).toEqual([[0, 1]]);
  expect(planDecode(rows, [first, second], 8)).toBeNull();
});

test("a sequence whose last prompt rows are in flight may decode next", () => {
  const rows = [sequence(0, 3, 20)];
  const first = planDecode(rows, [], 32)!;
  expect([...rowsOf(first)]).toEqual([[0, 20]]);
  expect([...rowsOf(planDecode(rows, [first], 32))]).toEqual([[0, 1]]);
});

test("a prompt whose one token is about to be produced is not planned again", () => {
  const rows = [sequence(0, 1, 20)];
  expect(planDecode(rows, [planDecode(rows, [], 32)!], 32)).toBeNull();
});

test("entries in flight of an earlier user of the slot do not count", () => {
  expect([...rowsOf(planDecode([sequence(0, 1)], [Int32Array.of(0, 99, 1)], 8))]).toEqual([[0, 1]]);
});

test("a batch larger than the budget takes turns", () => {
  const served = new Map<number, number>();
  const lastStep = new Array<number>(10).fill(-1);
  const inFlight: Int32Array[] = [];
  for (let step = 0; step < 50; step++) {
    while (inFlight.length < 2) {
      const rows = lastStep.map((last, slot) => sequence(slot, 1000 - (served.get(slot) ?? 0), 0, last));
      inFlight.push(planDecode(rows, inFlight, 4)!);
    }
    for (const [slot, rows] of rowsOf(inFlight.shift()!)) {
      served.set(slot, (served.get(slot) ?? 0) + rows);
      lastStep[slot] = step;
    }
  }
  expect(Math.max(...served.values()) - Math.min(...served.values())).toBeLessThanOrEqual(1);
});

describe("over random loads", () => {
  for (let seed = 1; seed <= 40; seed++) {
    test(`decodes are never held up by prompts, budgets hold, everything ends exactly (seed ${seed})`, () => {
      const random = fakeRandom(seed);
      const below = (limit: number) => Math.floor(random.uniform() * limit);
      const budget = 24 + below(100);
      const live: { slot: number; promptLeft: number; tokensLeft: number; lastStep: number }[] = [];
      const inFlight: Int32Array[] = [];
      let slot = 0;
      for (let step = 0; step < 600; step++) {
        if (step < 300 && random.uniform() < 0.4 && live.length < 24) {
          const promptLeft = random.uniform() < 0.5 ? 0 : 1 + below(400);
          live.push({ slot: slot++, promptLeft, tokensLeft: 1 + below(40), lastStep: -1 });
        }
        while (inFlight.length < 2) {
          const plan = planDecode(
            live.map((one) => sequence(one.slot, one.tokensLeft, one.promptLeft, one.lastStep)),
            inFlight,
            budget,
          );
          if (plan === null) break;
          const rows = rowsOf(plan);
          must([...rows.values()].reduce((a, b) => a + b, 0) <= budget, "the budget is exceeded");
          const earlier = inFlight.map(rowsOf);
          for (const one of live) {
            if (one.promptLeft > 0) continue;
            const planned = earlier.reduce((sum, plan) => sum + (plan.get(one.slot) ?? 0), 0);
            must((rows.get(one.slot) ?? 0) === (one.tokensLeft > planned ? 1 : 0), "a decoding sequence sits out");
          }
          inFlight.push(plan);
        }
        for (const [done, rows] of rowsOf(inFlight.shift() ?? null)) {
          const index = live.findIndex((one) => one.slot === done);
          const one = live[index]!;
          one.lastStep = step;
          if (one.promptLeft > 0) {
            one.promptLeft -= rows;
            must(one.promptLeft >= 0, "rows that are not there");
          } else must(rows === 1, "more than one row of a decoding sequence");
          if (one.promptLeft === 0) one.tokensLeft--;
          must(one.tokensLeft >= 0, "more tokens than were asked for");
          if (one.tokensLeft === 0) live.splice(index, 1);
        }
      }
      expect(live).toEqual([]);
      expect(inFlight).toEqual([]);
    });
  }
});
