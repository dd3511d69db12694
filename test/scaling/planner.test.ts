import { describe, expect, test } from "vitest";
import { type Demand, GROW_AFTER_MS, planWorkers, type RoleState } from "../../control-plane/scaling/planner.ts";

const rules = { prefill: { min: 0, max: 3 }, decode: { min: 0, max: 2 }, idleMs: 300_000 };
const quiet: Demand = { waiting: 0, oldestWaitMs: 0, missing: null, running: 0, idleMs: null };
const busy: Demand = { ...quiet, running: 3, idleMs: 0 };
const state = (wanted: number, starting = 0, unmade = 0): RoleState => ({ wanted, starting, unmade });
const plan = (demand: Partial<Demand>, prefill: RoleState, decode: RoleState, changes: Partial<typeof rules> = {}) =>
  planWorkers({ ...rules, ...changes }, { ...quiet, ...demand }, { prefill, decode });

describe("from zero", () => {
  test("a request that waits wakes both roles together, one worker each, at once", () => {
    const demand = { waiting: 1, running: 1, missing: "decode", oldestWaitMs: 0, idleMs: 0 } as const;
    expect(plan(demand, state(0), state(0))).toEqual({ prefill: 1, decode: 1 });
  });

  test("a request that was over between two looks leaves its workers wanted until the idle time", () => {
    expect(plan({ idleMs: 100 }, state(1), state(1))).toEqual({ prefill: 1, decode: 1 });
  });

  test("without any request there are as many as the minimum says", () => {
    expect(plan({}, state(0), state(0))).toEqual({ prefill: 0, decode: 0 });
    expect(plan({}, state(0), state(0), { decode: { min: 1, max: 2 } })).toEqual({ prefill: 0, decode: 1 });
  });
});

describe("growing", () => {
  const late = { ...busy, waiting: 5, oldestWaitMs: GROW_AFTER_MS + 1 };

  test("only the role that is waited for grows, by one", () => {
    expect(plan({ ...late, missing: "prefill" }, state(1), state(1))).toEqual({ prefill: 2, decode: 1 });
    expect(plan({ ...late, missing: "decode" }, state(1), state(1))).toEqual({ prefill: 1, decode: 2 });
  });

  test("not for a wait that is short, nor while a worker of the role is on its way", () => {
    expect(plan({ ...late, missing: "prefill", oldestWaitMs: 500 }, state(1), state(1)).prefill).toBe(1);
    expect(plan({ ...late, missing: "prefill" }, state(2, 1), state(1)).prefill).toBe(2);
    expect(plan({ ...late, missing: "prefill" }, state(2, 0, 1), state(1)).prefill).toBe(2);
  });

  test("never beyond the maximum", () => {
    for (let wanted = 0; wanted <= 3; wanted++) {
      expect(plan({ ...late, missing: "prefill" }, state(wanted), state(2)).prefill).toBeLessThanOrEqual(3);
      expect(plan({ ...late, missing: "decode" }, state(1), state(wanted)).decode).toBeLessThanOrEqual(2);
    }
  });
});

describe("shrinking", () => {
  test("back to the minimum after the idle time, and not a moment before", () => {
    expect(plan({ idleMs: 299_999 }, state(3), state(2))).toEqual({ prefill: 3, decode: 2 });
    expect(plan({ idleMs: 300_000 }, state(3), state(2))).toEqual({ prefill: 0, decode: 0 });
  });

  test("nothing shrinks while a request runs, however long it has been running", () => {
    expect(plan({ running: 1, idleMs: 3_600_000 }, state(3), state(2))).toEqual({ prefill: 3, decode: 2 });
  });

  test("a worker that is still loading outlives the idle time; the other role does not wait for it", () => {
    expect(plan({ idleMs: 900_000 }, state(1, 1), state(1))).toEqual({ prefill: 1, decode: 0 });
  });
});
