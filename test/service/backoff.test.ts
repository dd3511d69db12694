import { expect, test } from "vitest";
import { backoffMs } from "#service/backoff.ts";
import { fakeRandom } from "../support/fake-clock.ts";

const rule = { firstMs: 100, mostMs: 2_000 };
const at = (uniform: number) => ({ ...fakeRandom(), uniform: () => uniform });

test("pauses double up to the most", () => {
  const pauses = [1, 2, 3, 4, 5, 6, 7].map((attempt) => backoffMs(rule, attempt, at(1)));
  expect(pauses).toEqual([100, 200, 400, 800, 1600, 2000, 2000]);
});

test("a random half is taken off", () => {
  expect(backoffMs(rule, 1, at(0))).toBe(50);
  expect(backoffMs(rule, 6, at(0.5))).toBe(1500);
});

test("very late attempts are still numbers", () => {
  expect(backoffMs(rule, 1e9, at(1))).toBe(2000);
});
