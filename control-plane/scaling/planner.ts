import type { Role } from "#protocol/worker.ts";
import { idleVerdict, type KeepAlive, type KeepAliveRules } from "./keep-alive.ts";
import type { Starvation } from "./starvation.ts";

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
  /** Prompt tokens of the requests without a place. */
  readonly waitingTokens: number;
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
  readonly keepAlive: KeepAliveRules;
  /** What clients are to wait for, at most: the first token, and any other; 0: no goal. */
  readonly ttftGoalMs: number;
  readonly tpotGoalMs: number;
}

export type Counts = Readonly<Record<Role, number>>;

/** How many workers of a role, and why; null: nothing is to change. */
export interface RoleDecision {
  readonly count: number;
  readonly reason: string | null;
}

/** What the plan of capacity asks for; null: it holds, or was not made at this look. */
export type Asked = Readonly<Record<Role, { readonly groups: number; readonly reason: string } | null>>;

export const NOTHING_ASKED: Asked = { prefill: null, decode: null };

/** A role for which a request has waited longer than this, with no worker on its way, is given one more. */
export const GROW_AFTER_MS = 1_000;

/**
 * How many workers of each role a model should have: pure.
 *
 * - anything to do wakes both roles together, because a request needs both; so does the time at which a request is due
 * - between, the plan of capacity moves each role on its own; where it says nothing a role stays as it is
 * - whatever was planned, a role that starves its requests (starvation.ts) grows by one
 * - nothing shrinks while a request waits, nor a role of which a worker is still starting: what its start costs would be spent
 *   again and again
 * - a model that is idle for as long as its keep-alive says goes back to its minimum
 */
export function planWorkers(
  rules: ScalingRules,
  demand: Demand,
  current: Readonly<Record<Role, RoleState>>,
  keepAlive: KeepAlive,
  asked: Asked,
  starvation: Starvation,
): Readonly<Record<Role, RoleDecision>> {
  const busy = demand.running > 0 || demand.waiting > 0;
  const idle = busy ? "stay" : demand.idleMs === null ? "go" : idleVerdict(keepAlive, demand.idleMs);
  const plan = (role: Role): RoleDecision => {
    const { min, max } = rules[role];
    const { wanted, starting, unmade } = current[role];
    const to = (count: number, reason: string): RoleDecision => {
      const bounded = Math.min(max, Math.max(min, count));
      return { count: bounded, reason: bounded === wanted ? null : reason };
    };
    if (idle === "go") {
      const least = starting > 0 ? Math.min(wanted, max) : min;
      return to(least, `idle: ${keepAlive.reason}`);
    }
    if (wanted === 0 && busy) return to(1, demand.waiting > 0 ? "a request waits and there is none" : "requests run");
    if (wanted === 0 && idle === "wake") return to(1, `a request is due: ${keepAlive.reason}`);
    const starvedMs = Math.min(demand.oldestWaitMs, starvation[role]);
    const planned = asked[role];
    const held = starting + unmade > 0 || demand.waiting > 0;
    const count = planned === null || wanted === 0 ? wanted : held ? Math.max(wanted, planned.groups) : planned.groups;
    if (starvedMs > GROW_AFTER_MS && demand.missing === role && count <= wanted && wanted > 0) {
      return to(wanted + 1, `a request has waited ${(starvedMs / 1000).toFixed(1)} s for it, and none is on its way`);
    }
    // What serves is not taken away by a plan alone.
    const least = busy || idle === "wake" ? 1 : Math.min(wanted, 1);
    return to(Math.max(least, count), planned?.reason ?? `within ${min} to ${max}`);
  };
  return { prefill: plan("prefill"), decode: plan("decode") };
}
