/**
 * How many prefill and decode groups keep the goals for time to first token and time per token at least cost: pure, time and
 * what was learned are arguments.
 *
 * - P and D are planned apart: prefill work per second against groups, streams (arrivals times how long one lasts) against
 *   what a group holds within its goal
 * - what is planned for is the traffic until a group that is asked for now would be there; a queue is worked off besides
 * - unknown is not zero: where a signal is missing the role stays as it is
 * - growing is at once; shrinking waits until fewer would have done for `shrinkAfterMs`, one step of a fifth at a time
 */
export interface CapacitySignals {
  readonly nowMs: number;
  /** Means over a short and a long time; null: nothing was measured. */
  readonly arrivals: Rates | null;
  /** Seconds of one prefill group for a request, and its squared coefficient of variation. */
  readonly prefillSeconds: number | null;
  readonly prefillVariation: number;
  /** Prefill work that waits, in seconds of one group, and the age of the first. */
  readonly queuedSeconds: number;
  readonly oldestWaitMs: number;
  /** Streams that decode or wait for it, how long one lasts, and how many a group holds within the goal. */
  readonly streams: number;
  readonly streamSeconds: number | null;
  readonly streamsPerGroup: number | null;
  readonly coldStartMs: number;
}

export interface Rates {
  /** Requests per second. */
  readonly short: number;
  readonly long: number;
}

export interface CapacityRules {
  readonly ttftGoalMs: number;
  /** What is planned for, as a multiple of the traffic that is seen: it may grow until new groups are there. */
  readonly headroom: number;
  /** Share of requests that may miss a goal. */
  readonly missed: number;
  /** Standard deviations of the number of streams that are kept free. */
  readonly spare: number;
  readonly shrinkAfterMs: number;
  readonly least: number;
  readonly most: number;
}

export interface CapacityState {
  readonly prefill: RolePlan;
  readonly decode: RolePlan;
}

export interface RolePlan {
  readonly groups: number;
  /** Since when fewer would have done, and how many at the most of that time; null: not. */
  readonly fewerSinceMs: number | null;
  readonly fewer: number;
  /** The last decision, in words. */
  readonly reason: string;
}

/** Most that a role shrinks by in one decision. */
const SHRINK_SHARE = 0.2;

export function planCapacity(rules: CapacityRules, signals: CapacitySignals, state: CapacityState): CapacityState {
  return {
    prefill: settle(rules, signals.nowMs, state.prefill, prefillNeed(rules, signals)),
    decode: settle(rules, signals.nowMs, state.decode, decodeNeed(rules, signals)),
  };
}

type Need = { readonly groups: number; readonly reason: string } | null;

function prefillNeed(rules: CapacityRules, signals: CapacitySignals): Need {
  const { arrivals, prefillSeconds, prefillVariation, queuedSeconds, coldStartMs } = signals;
  if (arrivals === null || prefillSeconds === null) return null;
  const rate = rules.headroom * Math.max(arrivals.short, arrivals.long);
  const load = rate * prefillSeconds;
  const goalSeconds = Math.max(rules.ttftGoalMs / 1000 - prefillSeconds, rules.ttftGoalMs / 4000);
  let groups = Math.max(1, Math.ceil(load + 1e-9));
  while (groups < rules.most && waitTail(groups, load, prefillSeconds, prefillVariation, goalSeconds) > rules.missed)
    groups++;
  const calm = groups;
  // What waits already is worked off within the time in which new groups come, or the goal where that is longer.
  const restSeconds = Math.max(goalSeconds, coldStartMs / 4000);
  const behind =
    queuedSeconds > goalSeconds * groups ? Math.ceil((queuedSeconds - goalSeconds * groups) / restSeconds) : 0;
  groups += behind;
  const reason =
    `${rate.toFixed(2)} requests/s of ${prefillSeconds.toFixed(3)} s need ${calm} groups` +
    (behind > 0 ? `, ${queuedSeconds.toFixed(0)} s of waiting work ${behind} more` : "");
  return { groups, reason };
}

/** Share of requests that wait longer than `seconds` before `groups` servers: Erlang's C with Allen and Cunneen's correction. */
export function waitTail(groups: number, load: number, mean: number, variation: number, seconds: number): number {
  if (load >= groups) return 1;
  let blocked = 1;
  for (let n = 1; n <= groups; n++) blocked = (load * blocked) / (n + load * blocked);
  const waits = blocked / (1 - (load / groups) * (1 - blocked));
  const meanWait = (((1 + variation) / 2) * mean) / (groups - load);
  return waits * Math.exp(-seconds / meanWait);
}

function decodeNeed(rules: CapacityRules, signals: CapacitySignals): Need {
  const { arrivals, streams, streamSeconds, streamsPerGroup } = signals;
  if (arrivals === null || streamSeconds === null || streamsPerGroup === null) return null;
  const expected = rules.headroom * Math.max(Math.max(arrivals.short, arrivals.long) * streamSeconds, streams);
  const groups = Math.ceil((expected + rules.spare * Math.sqrt(expected)) / streamsPerGroup);
  const reason = `${expected.toFixed(0)} streams, ${streamsPerGroup} to a group, need ${groups}`;
  return { groups: Math.max(1, groups), reason };
}

function settle(rules: CapacityRules, nowMs: number, plan: RolePlan, need: Need): RolePlan {
  if (need === null) return { ...plan, reason: "held: not everything that it depends on is known" };
  const wanted = Math.min(rules.most, Math.max(rules.least, need.groups));
  if (wanted >= plan.groups) {
    const reason = wanted > plan.groups ? need.reason : plan.reason;
    return { groups: wanted, fewerSinceMs: null, fewer: 0, reason };
  }
  const fewer = Math.max(plan.fewerSinceMs === null ? 0 : plan.fewer, wanted);
  const sinceMs = plan.fewerSinceMs ?? nowMs;
  if (nowMs - sinceMs < rules.shrinkAfterMs) return { ...plan, fewerSinceMs: sinceMs, fewer };
  const step = Math.max(1, Math.floor(plan.groups * SHRINK_SHARE));
  const groups = Math.max(fewer, plan.groups - step);
  return {
    groups,
    fewerSinceMs: nowMs,
    fewer: wanted,
    reason: `fewer did for ${rules.shrinkAfterMs / 1000} s: ${need.reason}`,
  };
}
