import { expect, test } from "vitest";
import { PLANNER_AWAY_MS, StepPace } from "../../decode-node/step-pace.ts";

function observed(decodeMs: (sequences: number) => number, promptRowMs: number): StepPace {
  const pace = new StepPace();
  for (let i = 0; i < 200; i++) {
    const sequences = 1 + (i % 8);
    pace.observe(sequences, 0, decodeMs(sequences));
    pace.observe(sequences, 50, decodeMs(sequences) + 50 * promptRowMs);
  }
  return pace;
}

test("the line through what was measured tells what one stream more would cost", () => {
  const pace = observed((sequences) => 10 + 2 * sequences, 0.5);
  expect(pace.stepMs(4)).toBeCloseTo(18, 0);
  expect(pace.stepMs(9)).toBeCloseTo(28, 0);
  expect(new StepPace().stepMs(4)).toBe(0);
});

test("a round is long enough that nobody misses a planner that is away", () => {
  for (const ms of [0.1, 1, 7, 40]) {
    const pace = observed(() => ms, 0.1);
    expect(pace.stepsPerRound(4) * ms).toBeGreaterThanOrEqual(PLANNER_AWAY_MS * 0.99);
    expect(pace.stepsPerRound(4)).toBeLessThanOrEqual(Math.max(2, Math.ceil(PLANNER_AWAY_MS / ms) + 1));
  }
});

test("a chunk beside streams takes about as long as a step without it; alone it is the budget", () => {
  const pace = observed(() => 20, 0.5);
  expect(pace.chunkRows(4, 512)).toBeGreaterThan(30);
  expect(pace.chunkRows(4, 512)).toBeLessThan(50);
  expect(pace.chunkRows(0, 512)).toBe(512);
  expect(pace.chunkRows(4, 8)).toBe(8);
  expect(observed(() => 20, 50).chunkRows(4, 512)).toBe(16);
});
