import { expect, test } from "vitest";
import type { Role } from "#protocol/worker.ts";
import type { RoleState } from "../../control-plane/scaling/planner.ts";
import { NOBODY_STARVES, type Starvation, withLook } from "../../control-plane/scaling/starvation.ts";

interface Look {
  readonly missing?: Role | null;
  readonly waiting?: number;
  readonly prefill?: Partial<RoleState>;
  readonly decode?: Partial<RoleState>;
}

const there: RoleState = { wanted: 1, starting: 0, unmade: 0 };

/** What `looks` add up to, each 100 ms after the one before. */
function after(...looks: readonly Look[]): Starvation {
  return looks.reduce((before, { missing = null, waiting = 1, prefill, decode }) => {
    const demand = { waiting, missing, oldestWaitMs: 60_000, running: 1, idleMs: 0, waitingTokens: 8 };
    const current = { prefill: { ...there, ...prefill }, decode: { ...there, ...decode } };
    return withLook(before, demand, current, 100);
  }, NOBODY_STARVES);
}
const times = (count: number, look: Look): readonly Look[] => Array.from({ length: count }, () => look);

test("only the role that is missing keeps requests waiting", () => {
  expect(after(...times(5, { missing: "decode" }))).toEqual({ prefill: 0, decode: 500 });
  expect(after(...times(5, { missing: "prefill" }))).toEqual({ prefill: 500, decode: 0 });
});

test("time in which a worker of the role starts or is to be made does not count, however long the requests wait", () => {
  const starts = [
    ...times(9, { missing: "decode", decode: { unmade: 1 } }),
    ...times(90, { missing: "decode", decode: { starting: 1 } }),
  ];
  expect(after(...starts)).toEqual(NOBODY_STARVES);
  expect(after(...starts, ...times(3, { missing: "decode" }))).toEqual({ prefill: 0, decode: 300 });
  expect(after(...times(9, { missing: "decode" }), ...starts)).toEqual(NOBODY_STARVES);
  // The other role's start is none of its business.
  expect(after(...times(4, { missing: "prefill", decode: { starting: 1 } })).prefill).toBe(400);
});

test("a role that is full now and then while the other one is the bottleneck gathers nothing", () => {
  const round = [...times(8, { missing: "decode" }), ...times(2, { missing: "prefill" })];
  const { prefill, decode } = after(...times(20, {}).flatMap(() => round));
  expect(prefill).toBeLessThanOrEqual(200);
  expect(decode).toBeGreaterThan(10_000);
});

test("a place that is just being given stops no clock; nobody who waits resets it", () => {
  const waited = times(5, { missing: "decode" });
  expect(after(...waited, { missing: null }).decode).toBe(500);
  expect(after(...waited, { waiting: 0 })).toEqual(NOBODY_STARVES);
});
