import type { Role } from "#protocol/worker.ts";
import type { Counts, Demand, RoleState } from "./planner.ts";

/** For how long each role has kept requests waiting although all of its workers are there, in milliseconds. */
export type Starvation = Counts;

export const NOBODY_STARVES: Starvation = { prefill: 0, decode: 0 };

/**
 * What a look adds to it, so long after the one before: pure. Time counts for the role that is missing and against the other
 * one, so that a role which is full for a moment while the other one is the bottleneck gathers none. It begins anew when
 * nobody waits, and when a worker of the role is on its way: waiting for a start is no sign of too few.
 */
export function withLook(
  before: Starvation,
  { waiting, missing }: Demand,
  current: Readonly<Record<Role, RoleState>>,
  elapsedMs: number,
): Starvation {
  const of = (role: Role): number => {
    const { starting, unmade } = current[role];
    if (waiting === 0 || starting + unmade > 0) return 0;
    if (missing === null) return before[role];
    return Math.max(0, before[role] + (missing === role ? elapsedMs : -elapsedMs));
  };
  return { prefill: of("prefill"), decode: of("decode") };
}
