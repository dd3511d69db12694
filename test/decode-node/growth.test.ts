import { describe, expect, test } from "vitest";
import { growthOf, isDue, roomAhead } from "../../decode-node/growth.ts";
import { fakeRandom } from "../support/fake-clock.ts";

describe("with one draft and n steps planned at once", () => {
  for (const n of [2, 3, 4, 8, 16, 64]) {
    test(`R = 4n - U is free when a round begins, within 2n and 3n, and no step finds less than it may use (n = ${n})`, () => {
      const random = fakeRandom(n);
      const limit = 1_000_000;
      let length = 1000;
      // The first round is planned over the length itself; every later one while the round before it runs.
      let capacity = length + roomAhead(n, 1);
      const used: number[] = [];
      let free: readonly number[] = [];
      let wanted: readonly number[] = [];
      for (let round = 0; round < 2000; round++) {
        const known = length;
        const before = capacity;
        if (round > 0) {
          const accepted = used.at(-1)!;
          free = [...free.slice(-9), capacity - length];
          wanted = [...wanted.slice(-9), 4 * n - accepted];
          if (capacity - length < 2 * n || capacity - length > 3 * n) throw new Error(`${capacity - length} are free`);
        }
        let gained = 0;
        for (let step = 0; step < n; step++) {
          const may = random.uniform() < 0.05 ? 1 : 2;
          if (length + 2 > before) throw new Error("a step could outrun what is reserved");
          const accepted = Math.min(may, random.uniform() < 0.9 ? 2 : 1);
          length += accepted;
          gained += accepted;
        }
        used.push(gained);
        // What was planned while the round ran, over the length at its beginning.
        capacity = growthOf({ length: known, capacity, limit }, n, 1).reserve;
        if (capacity !== known + roomAhead(n, 1)) throw new Error("another room than two rounds");
      }
      expect(free).toEqual(wanted);
    });
  }
});

test("a round's room is due when n steps of it are used up, whatever they accepted, and never beyond the limit", () => {
  const at = (length: number) => ({ length, capacity: 1016, limit: 2000 });
  expect([1000, 1003, 1004, 1008].map((length) => isDue(at(length), 4, 1))).toEqual([false, false, true, true]);
  expect(isDue({ length: 1999, capacity: 2000, limit: 2000 }, 4, 1)).toBe(false);
  expect(growthOf({ length: 1995, capacity: 1999, limit: 2000 }, 4, 1)).toEqual({ reserve: 2000, blocks: 0 });
});
