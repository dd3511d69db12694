import { describe, expect, test } from "vitest";
import {
  type CapacityRules,
  type CapacitySignals,
  type CapacityState,
  planCapacity,
  waitTail,
} from "../../control-plane/scaling/capacity-plan.ts";

const rules: CapacityRules = {
  ttftGoalMs: 2_000,
  headroom: 1.25,
  missed: 0.05,
  spare: 2,
  shrinkAfterMs: 60_000,
  least: 1,
  most: 20,
};

const calm: CapacitySignals = {
  nowMs: 0,
  arrivals: { short: 4, long: 4 },
  prefillSeconds: 0.5,
  prefillVariation: 1,
  queuedSeconds: 0,
  oldestWaitMs: 0,
  streams: 80,
  streamSeconds: 20,
  streamsPerGroup: 50,
  coldStartMs: 60_000,
};

function stateOf(prefill: number, decode: number): CapacityState {
  const role = (groups: number) => ({ groups, fewerSinceMs: null, fewer: 0, reason: "" });
  return { prefill: role(prefill), decode: role(decode) };
}

/** Groups and reasons after one look. */
function look(signals: Partial<CapacitySignals>, state = stateOf(1, 1)): CapacityState {
  return planCapacity(rules, { ...calm, ...signals }, state);
}

describe("how many groups", () => {
  test("more prompts ask for prefill groups alone, longer streams for decode groups alone", () => {
    const usual = look({});
    const prompts = look({ prefillSeconds: 1 });
    const streams = look({ streamSeconds: 60, streams: 240 });
    expect(prompts.prefill.groups).toBeGreaterThan(usual.prefill.groups);
    expect(prompts.decode.groups).toBe(usual.decode.groups);
    expect(streams.decode.groups).toBeGreaterThan(usual.decode.groups);
    expect(streams.prefill.groups).toBe(usual.prefill.groups);
  });

  test("enough that few miss the goal, and not one more", () => {
    const { groups } = look({}).prefill;
    const load = 1.25 * 4 * 0.5;
    expect(waitTail(groups, load, 0.5, 1, 1.5)).toBeLessThanOrEqual(0.05);
    expect(waitTail(groups - 1, load, 0.5, 1, 1.5)).toBeGreaterThan(0.05);
  });

  test("one server's waits are those that theory knows", () => {
    // M/M/1 at load 0.5: half of the requests wait, and the wait falls by e every two service times.
    expect(waitTail(1, 0.5, 1, 1, 0)).toBeCloseTo(0.5);
    expect(waitTail(1, 0.5, 1, 1, 2)).toBeCloseTo(0.5 * Math.exp(-1));
    expect(waitTail(1, 1.1, 1, 1, 2)).toBe(1);
  });

  test("a burst counts at once, and a queue besides", () => {
    expect(look({ arrivals: { short: 12, long: 4 } }).prefill.groups).toBeGreaterThan(look({}).prefill.groups);
    const behind = look({ queuedSeconds: 120 }).prefill;
    expect(behind.groups).toBeGreaterThan(look({}).prefill.groups);
    expect(behind.reason).toMatch(/120 s of waiting work/);
  });

  test("never beyond the bounds", () => {
    expect(look({ arrivals: { short: 1e6, long: 0 } }).prefill.groups).toBe(20);
    expect(look({ arrivals: { short: 0, long: 0 }, streams: 0 }).decode.groups).toBe(1);
  });
});

describe("what is not known", () => {
  test("holds the role that depends on it, and says so", () => {
    const held = look({ prefillSeconds: null }, stateOf(7, 1));
    expect(held.prefill).toMatchObject({ groups: 7, reason: expect.stringContaining("held") });
    expect(held.decode.groups).toBeGreaterThan(1);
    const blind = look({ arrivals: null }, stateOf(7, 9));
    expect([blind.prefill.groups, blind.decode.groups]).toEqual([7, 9]);
  });
});

describe("shrinking", () => {
  test("waits until fewer have done for a while, goes in steps, and starts anew when more are needed", () => {
    let state = stateOf(20, 2);
    const at = (nowMs: number, changes: Partial<CapacitySignals> = {}) => {
      state = look({ nowMs, ...changes }, state);
      return state.prefill.groups;
    };
    expect(at(0)).toBe(20);
    expect(at(59_000)).toBe(20);
    expect(at(60_000)).toBe(16);
    expect(at(61_000)).toBe(16);
    expect(at(100_000, { arrivals: { short: 60, long: 4 } })).toBe(20);
    expect(at(110_000)).toBe(20);
    expect(at(165_000)).toBe(20);
    expect(at(170_000)).toBe(16);
    expect(state.prefill.reason).toMatch(/fewer did for 60 s/);
  });

  test("never below the most that was needed meanwhile", () => {
    let state = stateOf(6, 1);
    const needed = look({ arrivals: { short: 6, long: 6 } }).prefill.groups;
    expect(needed).toBeLessThan(6);
    state = look({ nowMs: 0 }, state);
    state = look({ nowMs: 30_000, arrivals: { short: 6, long: 6 } }, state);
    state = look({ nowMs: 60_000 }, state);
    expect(state.prefill.groups).toBe(Math.max(needed, 5));
  });
});
