import { describe, expect, test } from "vitest";
import { keepAliveOf, NO_GAPS } from "../../control-plane/scaling/keep-alive.ts";
import {
  type Asked,
  type Demand,
  GROW_AFTER_MS,
  NOTHING_ASKED,
  planWorkers,
  type RoleState,
} from "../../control-plane/scaling/planner.ts";
import { NOBODY_STARVES } from "../../control-plane/scaling/starvation.ts";

const rules = {
  ...{ prefill: { min: 0, max: 3 }, decode: { min: 0, max: 2 } },
  ...{ keepAlive: { fixedMs: 300_000, learned: true }, ttftGoalMs: 1_000, tpotGoalMs: 0 },
};
const fixed = keepAliveOf(rules.keepAlive, NO_GAPS, 1_000);
const quiet: Demand = { waiting: 0, oldestWaitMs: 0, missing: null, running: 0, idleMs: null, waitingTokens: 0 };
const busy: Demand = { ...quiet, running: 3, idleMs: 0 };
const state = (wanted: number, starting = 0, unmade = 0): RoleState => ({ wanted, starting, unmade });
interface Case {
  readonly asked?: Asked;
  readonly keepAlive?: typeof fixed;
  /** Of both roles. */
  readonly starvedMs?: number;
  readonly changes?: Partial<typeof rules>;
}
const decide = (demand: Partial<Demand>, prefill: RoleState, decode: RoleState, given: Case = {}) => {
  const { asked = NOTHING_ASKED, keepAlive = fixed, starvedMs = 0, changes = {} } = given;
  const starvation = { ...NOBODY_STARVES, prefill: starvedMs, decode: starvedMs };
  const all = { ...rules, ...changes };
  return planWorkers(all, { ...quiet, ...demand }, { prefill, decode }, keepAlive, asked, starvation);
};
/** The counts alone. */
const plan = (demand: Partial<Demand>, prefill: RoleState, decode: RoleState, given: Case = {}) => {
  const after = decide(demand, prefill, decode, given);
  return { prefill: after.prefill.count, decode: after.decode.count };
};

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
    expect(plan({}, state(0), state(0), { changes: { decode: { min: 1, max: 2 } } })).toEqual({
      prefill: 0,
      decode: 1,
    });
  });
});

describe("growing", () => {
  const late = { ...busy, waiting: 5, oldestWaitMs: GROW_AFTER_MS + 1 };
  const starved = { starvedMs: GROW_AFTER_MS + 1 };

  test("only the role that is waited for grows, by one", () => {
    expect(plan({ ...late, missing: "prefill" }, state(1), state(1), starved)).toEqual({ prefill: 2, decode: 1 });
    expect(plan({ ...late, missing: "decode" }, state(1), state(1), starved)).toEqual({ prefill: 1, decode: 2 });
  });

  test("not for a wait that is short, nor for one that was spent on a start", () => {
    const short = { ...late, missing: "prefill", oldestWaitMs: 500 } as const;
    expect(plan(short, state(1), state(1), starved).prefill).toBe(1);
    const cold = { ...late, missing: "prefill", oldestWaitMs: 20_000 } as const;
    expect(plan(cold, state(1), state(1), { starvedMs: GROW_AFTER_MS }).prefill).toBe(1);
  });

  test("never beyond the maximum", () => {
    for (let wanted = 0; wanted <= 3; wanted++) {
      expect(plan({ ...late, missing: "prefill" }, state(wanted), state(2), starved).prefill).toBeLessThanOrEqual(3);
      expect(plan({ ...late, missing: "decode" }, state(1), state(wanted), starved).decode).toBeLessThanOrEqual(2);
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

describe("what the plan of capacity asks for", () => {
  const asks = (prefill: number | null, decode: number | null): Asked => ({
    prefill: prefill === null ? null : { groups: prefill, reason: "more prompts" },
    decode: decode === null ? null : { groups: decode, reason: "more streams" },
  });

  test("moves each role on its own, with its reason, within the limits", () => {
    expect(decide(busy, state(1), state(1), { asked: asks(3, 1) })).toEqual({
      prefill: { count: 3, reason: "more prompts" },
      decode: { count: 1, reason: null },
    });
    expect(decide(busy, state(1), state(1), { asked: asks(9, 9) }).prefill.count).toBe(3);
    expect(decide(busy, state(3), state(2), { asked: asks(1, 2) }).prefill).toEqual({
      count: 1,
      reason: "more prompts",
    });
  });

  test("nothing where it holds a role, or was not made", () => {
    expect(decide(busy, state(3), state(2), { asked: asks(null, 1) })).toMatchObject({
      prefill: { count: 3 },
      decode: { count: 1 },
    });
    expect(decide(busy, state(3), state(2))).toMatchObject({ prefill: { count: 3 }, decode: { count: 2 } });
  });

  test("takes nothing away while a request waits, nor from a role whose worker is starting", () => {
    expect(decide({ ...busy, waiting: 1, missing: "decode" }, state(3), state(2), { asked: asks(1, 1) })).toMatchObject(
      {
        prefill: { count: 3 },
        decode: { count: 2 },
      },
    );
    expect(decide(busy, state(3, 1), state(2), { asked: asks(1, 1) })).toMatchObject({
      prefill: { count: 3 },
      decode: { count: 1 },
    });
  });

  test("never below one while there is something to do, and wakes nobody by itself", () => {
    expect(decide(busy, state(1), state(1), { asked: asks(0, 0) })).toMatchObject({
      prefill: { count: 1 },
      decode: { count: 1 },
    });
    expect(decide({ idleMs: 1_000 }, state(0), state(0), { asked: asks(2, 2) })).toMatchObject({
      prefill: { count: 0 },
      decode: { count: 0 },
    });
  });

  test("a request that starves is believed before the plan", () => {
    const late = { ...busy, waiting: 5, oldestWaitMs: GROW_AFTER_MS + 1, missing: "prefill" } as const;
    const { prefill } = decide(late, state(1), state(1), { asked: asks(1, 1), starvedMs: GROW_AFTER_MS + 1 });
    expect(prefill).toMatchObject({ count: 2, reason: expect.stringMatching(/waited 1\.0 s/) });
  });
});

describe("a model whose requests come at known times", () => {
  const due = { lingerMs: 10_000, wakeMs: 50_000, untilMs: 70_000, reason: "every minute" };

  test("is stopped between them, woken before the next is due, and stopped again when it does not come", () => {
    const at = (idleMs: number, wanted: number) =>
      decide({ idleMs }, state(wanted), state(wanted), { keepAlive: due }).decode;
    expect(at(9_000, 1).count).toBe(1);
    expect(at(10_000, 1)).toEqual({ count: 0, reason: "idle: every minute" });
    expect(at(49_000, 0).count).toBe(0);
    expect(at(50_000, 0)).toEqual({ count: 1, reason: "a request is due: every minute" });
    expect(at(69_000, 1).count).toBe(1);
    expect(at(70_000, 1).count).toBe(0);
  });
});
