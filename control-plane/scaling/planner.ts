import type { Role } from "#protocol/worker.ts";

/** What a model's requests ask of its workers, at one moment. */
export interface Demand {
  /** Requests without a place, and how long the first of them has waited. */
  readonly waiting: number;
  readonly oldestWaitMs: number;
  /** The role the first of them waits for; null while that is not known. */
  readonly missing: Role | null;
  /** Requests between their beginning and their end, the waiting ones included. */
  readonly running: number;
  /** Since the last request began or ended; null: there was none yet. */
  readonly idleMs: number | null;
}

/** Workers of one role. */
export interface RoleState {
  /** How many were asked for last. */
  readonly wanted: number;
  /** Processes that were started and do not take requests yet. */
  readonly starting: number;
  /** Asked for and without a process yet. */
  readonly unmade: number;
}

export interface Limits {
  readonly min: number;
  readonly max: number;
}

export interface ScalingRules {
  readonly prefill: Limits;
  readonly decode: Limits;
  readonly idleMs: number;
}

export type Counts = Readonly<Record<Role, number>>;

/** A request that waits longer than this, with no worker on its way, asks for one more. */
export const GROW_AFTER_MS = 1_000;

/**
 * How many workers of each role a model should have: pure.
 *
 * - anything to do wakes both roles together, because a request needs both
 * - a role grows by one while requests wait for it and none of its workers is still starting or to be made
 * - after the idle time both go back to their minimum; before it nothing shrinks, so that a pause does not flap
 * - a worker that is still starting is never stopped for idleness: what its start costs would be spent again and again
 */
export function planWorkers(rules: ScalingRules, demand: Demand, current: Readonly<Record<Role, RoleState>>): Counts {
  const busy = demand.running > 0 || demand.waiting > 0;
  const idle = !busy && (demand.idleMs === null || demand.idleMs >= rules.idleMs);
  const plan = (role: Role): number => {
    const { min, max } = rules[role];
    const { wanted, starting, unmade } = current[role];
    if (idle) return starting > 0 ? Math.max(min, Math.min(wanted, max)) : min;
    const atLeast = Math.max(wanted, min, busy ? 1 : 0);
    const grows =
      demand.waiting > 0 &&
      demand.missing === role &&
      demand.oldestWaitMs > GROW_AFTER_MS &&
      starting + unmade === 0 &&
      wanted > 0;
    return Math.min(max, grows ? atLeast + 1 : atLeast);
  };
  return { prefill: plan("prefill"), decode: plan("decode") };
}
