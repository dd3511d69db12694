import { describe, expect, test } from "vitest";
import {
  type CapacityRules,
  type CapacitySignals,
  type CapacityState,
  newRolePlan,
  planCapacity,
  waitTail,
} from "../../control-plane/scaling/capacity-plan.ts";

const rules: CapacityRules = {
  ttftGoalMs: 2_000,
  headroom: 1.25,
  missed: 0.05,
  spare: 2,
  memoryStarts: 1,
  memoryMs: { min: 1_000, max: 600_000 },
  rare: 0.5,
  mostLate: 0.05,
  soon: 1,
  patience: 1,
  shrinkAfterMs: 60_000,
  groups: { prefill: { min: 1, max: 20 }, decode: { min: 1, max: 20 } },
};

const calm: CapacitySignals = {
  nowMs: 0,
  arrivals: { short: 4, long: 4 },
  prefillSeconds: 0.5,
  prefillVariation: 1,
  queuedSeconds: 0,
  oldestWaitMs: 0,
  late: 0,
  streams: 80,
  streamSeconds: 20,
  streamsPerGroup: 50,
  coldStartMs: 60_000,
};

function stateOf(prefill: number, decode: number): CapacityState {
  return { prefill: newRolePlan(prefill), decode: newRolePlan(decode) };
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
    expect(look({ arrivals: { short: 1e6, long: 0 } }, stateOf(19, 1)).prefill.groups).toBe(20);
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

describe("growing", () => {
  test("at most doubles, or adds four, at a time", () => {
    const flood = { arrivals: { short: 1e6, long: 4 } };
    expect(look(flood, stateOf(1, 1)).prefill.groups).toBe(5);
    expect(look(flood, stateOf(8, 1)).prefill.groups).toBe(16);
    expect(look(flood, stateOf(16, 1)).prefill.groups).toBe(20);
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
    expect(at(175_000)).toBe(16);
    expect(state.prefill.reason).toMatch(/did for 60 s/);
  });

  test("what came again and again is kept, what came once is not; all of it while first tokens are late", () => {
    const burst = { arrivals: { short: 12, long: 4 } };
    const needed = look(burst, stateOf(5, 1)).prefill.groups;
    const left = (bursts: number, late: number): number => {
      let state = stateOf(needed, 1);
      const often = { ...rules, memoryMs: { min: 600_000, max: 600_000 }, rare: 0.3 };
      for (let i = 0; i < 40; i++) {
        const changes = i % 10 < bursts ? burst : {};
        state = planCapacity(often, { ...calm, ...changes, late, nowMs: i * 15_000 }, state);
      }
      return state.prefill.groups;
    };
    expect(left(1, 0)).toBeLessThan(needed);
    expect(left(5, 0)).toBe(needed);
    expect(left(1, 0.05)).toBe(needed);
  });

  test("what came again is waited for as long as it stayed away before, what came once is not", () => {
    const patient = { ...rules, memoryMs: { min: 600_000, max: 600_000 }, rare: 0, soon: 0.1, patience: 1.25 };
    const burst = { arrivals: { short: 12, long: 4 } };
    const needed = look(burst, stateOf(5, 1)).prefill.groups;
    /** Groups when so much time has gone by, with bursts of 15 s at these times. */
    const grown = (untilMs: number, bursts: readonly number[]): number => {
      let state = stateOf(needed, 1);
      for (let nowMs = 0; nowMs <= untilMs; nowMs += 15_000) {
        const changes = bursts.includes(nowMs) ? burst : {};
        state = planCapacity(patient, { ...calm, ...changes, late: 0, nowMs }, state);
      }
      return state.prefill.groups;
    };
    expect(grown(60_000, [0])).toBe(needed);
    expect(grown(240_000, [0])).toBeLessThan(needed);
    expect(grown(390_000, [0, 180_000])).toBe(needed);
    expect(grown(570_000, [0, 180_000])).toBeLessThan(needed);
  });

  test("the memory is as long as it takes to be worth a start", () => {
    const burst = { arrivals: { short: 12, long: 4 } };
    const kept = (coldStartMs: number): number => {
      let state = look({ ...burst, coldStartMs }, stateOf(1, 1));
      for (let i = 1; i <= 60; i++) state = look({ nowMs: i * 5_000, coldStartMs, late: 0.05 }, state);
      return state.prefill.groups;
    };
    expect(kept(1_000)).toBeLessThan(kept(600_000));
  });
});
