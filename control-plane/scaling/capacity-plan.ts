import type { Role } from "#protocol/worker.ts";

/**
 * How many prefill and decode groups keep the goals for time to first token and time per token at least cost: pure, time and
 * what was learned are arguments.
 *
 * - P and D are planned apart: prefill work per second against groups, streams (arrivals times how long one lasts) against
 *   what a group holds within its goal
 * - what is planned for is the traffic until a group that is asked for now would be there; a queue is worked off besides
 * - unknown is not zero: where a signal is missing the role stays as it is
 * - what comes again is kept: groups that were needed for more than a share of the last while stay, so that bursts that return
 *   find them, until they stay away for longer than they did before. The while is a number of cold starts; the share is small
 *   where requests missed their goal, large where none did
 * - growing is at once, and at most doubles; shrinking waits, one step of a fifth at a time
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
  /** Of the first tokens of a long time, the share that came later than the goal; null: none came. */
  readonly late: number | null;
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
  /** What was needed is remembered for so many cold starts, within the two bounds. */
  readonly memoryStarts: number;
  readonly memoryMs: Bounds;
  /** Share of the remembered time in which more may have been needed than is kept, while no first token is late. */
  readonly rare: number;
  /** Share of late first tokens at which all is kept that was needed. */
  readonly mostLate: number;
  /** Share of the remembered time for which a group is kept that was not needed again. */
  readonly soon: number;
  /** It is kept longer, for so many times the longest gap between two needs of it. */
  readonly patience: number;
  /** Fewer must do for so long before a step down. */
  readonly shrinkAfterMs: number;
  readonly groups: Readonly<Record<Role, Bounds>>;
}

interface Bounds {
  readonly min: number;
  readonly max: number;
}

/** Chosen on two traces, see `control-plane/simulate`. */
export const CAPACITY_CONSTANTS = {
  ...{ headroom: 1, missed: 0.05, spare: 2 },
  ...{ memoryStarts: 15, memoryMs: { min: 60_000, max: 900_000 }, rare: 0.2, mostLate: 0.05 },
  ...{ soon: 1 / 3, patience: 1.25, shrinkAfterMs: 20_000 },
} as const;

export interface CapacityState {
  readonly prefill: RolePlan;
  readonly decode: RolePlan;
}

export interface RolePlan {
  readonly groups: number;
  /** The most that was needed in each of the latest spans of time, the last one still running. */
  readonly needs: readonly Need[];
  /** Since when fewer would have done; null: not. */
  readonly fewerSinceMs: number | null;
  /** Something that it depends on is not known. */
  readonly held: boolean;
  /** The last decision, in words. */
  readonly reason: string;
}

interface Need {
  readonly sinceMs: number;
  readonly groups: number;
}

export function newRolePlan(groups: number): RolePlan {
  return { groups, needs: [], fewerSinceMs: null, held: false, reason: "as found" };
}

/** Spans that the memory is divided into. */
const SPANS = 40;
/** A role may grow by so many at once, however few it has. */
const LEAST_GROWTH = 4;
/** Most that a role shrinks by in one decision. */
const SHRINK_SHARE = 0.2;

export function planCapacity(rules: CapacityRules, signals: CapacitySignals, state: CapacityState): CapacityState {
  return {
    prefill: settle(rules, signals, state.prefill, prefillNeed(rules, signals), rules.groups.prefill),
    decode: settle(rules, signals, state.decode, decodeNeed(rules, signals), rules.groups.decode),
  };
}

/** `steady`: without the work that waits already. */
type Wish = { readonly groups: number; readonly steady: number; readonly reason: string } | null;

function prefillNeed(rules: CapacityRules, signals: CapacitySignals): Wish {
  const { arrivals, prefillSeconds, prefillVariation, queuedSeconds, coldStartMs } = signals;
  if (arrivals === null || prefillSeconds === null) return null;
  const rate = rules.headroom * Math.max(arrivals.short, arrivals.long);
  const load = rate * prefillSeconds;
  const goalSeconds = Math.max(rules.ttftGoalMs / 1000 - prefillSeconds, rules.ttftGoalMs / 4000);
  let groups = Math.max(1, Math.ceil(load + 1e-9));
  while (
    groups < rules.groups.prefill.max &&
    waitTail(groups, load, prefillSeconds, prefillVariation, goalSeconds) > rules.missed
  )
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
  return { groups, steady: calm, reason };
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

function decodeNeed(rules: CapacityRules, signals: CapacitySignals): Wish {
  const { arrivals, streams, streamSeconds, streamsPerGroup } = signals;
  if (arrivals === null || streamSeconds === null || streamsPerGroup === null) return null;
  const expected = rules.headroom * Math.max(Math.max(arrivals.short, arrivals.long) * streamSeconds, streams);
  const groups = Math.max(1, Math.ceil((expected + rules.spare * Math.sqrt(expected)) / streamsPerGroup));
  const reason = `${expected.toFixed(0)} streams, ${streamsPerGroup} to a group, need ${groups}`;
  return { groups, steady: groups, reason };
}

function settle(rules: CapacityRules, signals: CapacitySignals, plan: RolePlan, wish: Wish, bounds: Bounds): RolePlan {
  if (wish === null) return { ...plan, held: true, reason: "held: not everything that it depends on is known" };
  const { nowMs, coldStartMs } = signals;
  const memoryMs = within(rules.memoryMs, rules.memoryStarts * coldStartMs);
  const needs = withNeed(plan.needs, { sinceMs: nowMs, groups: wish.steady }, memoryMs);
  const rare = rules.rare * Math.max(0, 1 - (signals.late ?? rules.mostLate / 2) / rules.mostLate);
  const kept = expected(needs, usual(needs, rare), nowMs, rules.soon * memoryMs, rules.patience);
  const wanted = within(bounds, Math.max(wish.groups, kept));
  if (wanted >= plan.groups) {
    const groups = Math.min(wanted, Math.max(plan.groups * 2, plan.groups + LEAST_GROWTH));
    const why = kept > wish.groups ? `${kept} were needed often enough in the last ${seconds(memoryMs)}` : wish.reason;
    return { groups, needs, fewerSinceMs: null, held: false, reason: groups > plan.groups ? why : plan.reason };
  }
  const sinceMs = plan.fewerSinceMs ?? nowMs;
  if (nowMs - sinceMs < rules.shrinkAfterMs) return { ...plan, needs, fewerSinceMs: sinceMs, held: false };
  const step = Math.max(1, Math.floor(plan.groups * SHRINK_SHARE));
  return {
    groups: Math.max(wanted, plan.groups - step),
    needs,
    fewerSinceMs: nowMs,
    held: false,
    reason: `${wanted} did for ${seconds(rules.shrinkAfterMs)}: ${wish.reason}`,
  };
}

/** The needs of the last `memoryMs`, with one more. */
function withNeed(needs: readonly Need[], need: Need, memoryMs: number): readonly Need[] {
  const last = needs.at(-1);
  const fresh = needs.filter(({ sinceMs }) => sinceMs > need.sinceMs - memoryMs);
  if (last === undefined || need.sinceMs - last.sinceMs >= memoryMs / SPANS) return [...fresh, need];
  const most = { ...last, groups: Math.max(last.groups, need.groups) };
  return [...fresh.filter((one) => one !== last), most];
}

/** Of `atMost` groups those that were needed soon ago, or whose present gap is not yet long beside the ones before. */
function expected(needs: readonly Need[], atMost: number, nowMs: number, soonMs: number, patience: number): number {
  for (let level = atMost; level > 0; level--) {
    let gap = 0;
    let last: number | null = null;
    for (const { sinceMs, groups } of needs) {
      if (groups < level) continue;
      if (last !== null) gap = Math.max(gap, sinceMs - last);
      last = sinceMs;
    }
    if (last !== null && nowMs - last <= Math.max(soonMs, patience * gap)) return level;
  }
  return 0;
}

/** What all but a share of the spans needed. */
function usual(needs: readonly Need[], rare: number): number {
  const sorted = needs.map(({ groups }) => groups).sort((a, b) => b - a);
  return sorted[Math.floor(sorted.length * rare)] ?? 0;
}

function within({ min, max }: Bounds, value: number): number {
  return Math.min(max, Math.max(min, value));
}

function seconds(ms: number): string {
  return `${Math.round(ms / 1000)} s`;
}
