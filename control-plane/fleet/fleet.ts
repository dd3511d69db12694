import type { ModelName, RankId, WorkerId } from "#protocol/ids.ts";
import type { KvEndpoint } from "#protocol/kv.ts";
import type { ExchangeEndpoint, LostGroup, Membership } from "#protocol/membership.ts";
import type { ModelCard } from "#protocol/model-card.ts";
import {
  type Goodbye,
  HEARTBEAT_TIMEOUT_MS,
  type Heartbeat,
  type Load,
  MAX_CLOCK_SKEW_MS,
  type Role,
  type WorkerState,
} from "#protocol/worker.ts";

/**
 * What is known of the ranks, as immutable snapshots, and the pure functions that make the next one.
 *
 *   (unknown) -> loading -> (forming <->) ready -> draining -> (gone)      any of them -> lost -> back by a heartbeat, or (gone)
 *
 * F1 a message of an earlier epoch than the known one changes nothing
 * F2 a rank silent for HEARTBEAT_TIMEOUT_MS is lost; one silent for FORGET_MS is forgotten
 * F3 time is an argument, on the receiver's clock
 * F4 silence counts only while this process could hear: see `withSilenceExcused`
 * F5 a group has ended once one of its members is lost, gone, or says so: its other members are `forming`, whatever they
 *    still say, and the one they name as the cause is lost until it is heard again
 */
export interface Rank {
  readonly rankId: RankId;
  readonly workerId: WorkerId;
  readonly rank: number;
  readonly ranks: number;
  readonly role: Role;
  readonly state: WorkerState | "lost";
  readonly epoch: number;
  readonly model: ModelCard;
  readonly kvEndpoint: KvEndpoint | null;
  readonly exchange: ExchangeEndpoint | null;
  readonly experts: number;
  readonly membership: Membership | null;
  readonly lostGroup: LostGroup | null;
  readonly load: Load;
  readonly kvSeq: number;
  readonly healthUrl: string;
  readonly pid: number;
  readonly lastBeatMs: number;
  /** No new work before then: it refused or failed lately. */
  readonly coolUntilMs: number;
  /** Requests of this control plane that hold something there, and their prompt tokens not yet computed. */
  readonly ownRequests: number;
  readonly ownPrefillTokens: number;
  /** Heartbeats in a row whose clock was more than MAX_CLOCK_SKEW_MS off; a single one may just have been late. */
  readonly skewedBeats: number;
}

export interface FleetSnapshot {
  readonly ranks: ReadonlyMap<RankId, Rank>;
  /** P to D paths that failed lately, by `pairKey`: not used before the time, then tried again by one request. */
  readonly pairs: ReadonlyMap<string, number>;
  /** Per worker the latest group epoch that is known to have ended. */
  readonly endedGroups: ReadonlyMap<WorkerId, number>;
}

export const EMPTY_FLEET: FleetSnapshot = { ranks: new Map(), pairs: new Map(), endedGroups: new Map() };

/** After so many skewed heartbeats in a row a rank gets no work: its deadlines would mean something else. */
export const SKEWED_BEATS = 3;
/** A rank that said nothing for so long is not coming back under this name. */
export const FORGET_MS = 60_000;
/** How long a P to D path that failed is avoided; then one request per such time tries it, until one succeeds. */
export const PAIR_COOL_MS = 5_000;

export function pairKey(prefill: RankId, decode: RankId): string {
  return `${prefill}>${decode}`;
}

/** A heartbeat arrived at `nowMs` (monotonic), `wallMs` (epoch). */
export function withHeartbeat(fleet: FleetSnapshot, beat: Heartbeat, nowMs: number, wallMs: number): FleetSnapshot {
  const known = fleet.ranks.get(beat.rankId);
  if (known !== undefined && known.epoch > beat.epoch) return fleet;
  const same = known !== undefined && known.epoch === beat.epoch;
  const skewed = Math.abs(beat.clockMs - wallMs) > MAX_CLOCK_SKEW_MS;
  const heard = withRank(fleet, {
    rankId: beat.rankId,
    workerId: beat.workerId,
    rank: beat.rank,
    ranks: beat.ranks,
    role: beat.role,
    state: beat.state,
    epoch: beat.epoch,
    model: beat.model,
    kvEndpoint: beat.kvEndpoint,
    exchange: beat.exchange,
    experts: beat.experts,
    membership: beat.membership,
    lostGroup: beat.lostGroup,
    load: beat.load,
    kvSeq: beat.kvSeq,
    healthUrl: beat.healthUrl,
    pid: beat.pid,
    lastBeatMs: nowMs,
    coolUntilMs: same ? known.coolUntilMs : 0,
    ownRequests: same ? known.ownRequests : 0,
    ownPrefillTokens: same ? known.ownPrefillTokens : 0,
    skewedBeats: skewed ? (known?.skewedBeats ?? 0) + 1 : 0,
  });
  if (beat.ranks === 1) return heard;
  // A rank that began anew is in no group, whatever its predecessor was in.
  const left = same ? null : (known?.membership?.epoch ?? null);
  const ended = Math.max(left ?? 0, beat.lostGroup?.epoch ?? 0, fleet.endedGroups.get(beat.workerId) ?? 0);
  return withGroupEnded(heard, beat.workerId, ended, beat.lostGroup);
}

/** No group of this worker up to `epoch` lives any more. `lost`: how the last of them ended, where a member told. */
function withGroupEnded(
  fleet: FleetSnapshot,
  workerId: WorkerId,
  epoch: number,
  lost: LostGroup | null = null,
): FleetSnapshot {
  if (epoch === 0) return fleet;
  const news = epoch > (fleet.endedGroups.get(workerId) ?? 0);
  let next = news ? { ...fleet, endedGroups: new Map(fleet.endedGroups).set(workerId, epoch) } : fleet;
  for (const rank of fleet.ranks.values()) {
    if (rank.workerId !== workerId || rank.membership === null || rank.membership.epoch > epoch) continue;
    if (news && rank.rank === lost?.guilty) next = withRank(next, { ...rank, state: "lost" });
    else if (rank.state === "ready") next = withRank(next, { ...rank, state: "forming" });
  }
  return next;
}

/** The group these were in, if they were in one, has ended with them. */
function withoutGroupsOf(fleet: FleetSnapshot, gone: readonly Rank[]): FleetSnapshot {
  let next = fleet;
  for (const { workerId, membership } of gone) {
    if (membership !== null) next = withGroupEnded(next, workerId, membership.epoch);
  }
  return next;
}

/** A rank left by its own will. */
export function withGoodbye(fleet: FleetSnapshot, goodbye: Goodbye): FleetSnapshot {
  const known = fleet.ranks.get(goodbye.rankId);
  if (known === undefined || known.epoch !== goodbye.epoch) return fleet;
  return without(fleet, [goodbye.rankId]);
}

/** The process of a rank has ended. */
export function withoutRank(fleet: FleetSnapshot, rankId: RankId): FleetSnapshot {
  return fleet.ranks.has(rankId) ? without(fleet, [rankId]) : fleet;
}

/** Nobody could be heard until `nowMs`: the bus was away, or this process stood still. */
export function withSilenceExcused(fleet: FleetSnapshot, nowMs: number): FleetSnapshot {
  const ranks = new Map(fleet.ranks);
  for (const rank of fleet.ranks.values()) {
    if (rank.state !== "lost") ranks.set(rank.rankId, { ...rank, lastBeatMs: nowMs });
  }
  return { ...fleet, ranks };
}

/** Time passed. */
export function withTime(fleet: FleetSnapshot, nowMs: number): FleetSnapshot {
  let next = fleet;
  const gone: RankId[] = [];
  const silent: Rank[] = [];
  for (const rank of fleet.ranks.values()) {
    const silentMs = nowMs - rank.lastBeatMs;
    if (silentMs > FORGET_MS) gone.push(rank.rankId);
    else if (silentMs > HEARTBEAT_TIMEOUT_MS && rank.state !== "lost") silent.push(rank);
  }
  for (const rank of silent) next = withRank(next, { ...rank, state: "lost" });
  next = withoutGroupsOf(next, silent);
  if (gone.length > 0) next = without(next, gone);
  const expired = [...next.pairs].filter(([, untilMs]) => untilMs + PAIR_COOL_MS < nowMs);
  if (expired.length === 0) return next;
  const pairs = new Map(next.pairs);
  for (const [key] of expired) pairs.delete(key);
  return { ...next, pairs };
}

/** A rank refused or failed: it gets nothing new before `untilMs`. */
export function withCooling(fleet: FleetSnapshot, rankId: RankId, untilMs: number): FleetSnapshot {
  const rank = fleet.ranks.get(rankId);
  return rank === undefined ? fleet : withRank(fleet, { ...rank, coolUntilMs: Math.max(rank.coolUntilMs, untilMs) });
}

/** A transfer between two ranks failed (`untilMs`) or worked (null). */
export function withPair(fleet: FleetSnapshot, prefill: RankId, decode: RankId, untilMs: number | null): FleetSnapshot {
  const key = pairKey(prefill, decode);
  if (untilMs === null && !fleet.pairs.has(key)) return fleet;
  const pairs = new Map(fleet.pairs);
  if (untilMs === null) pairs.delete(key);
  else pairs.set(key, untilMs);
  return { ...fleet, pairs };
}

/** A request of this control plane took (+1) or gave back (-1) a place on a rank. */
export function withOwn(
  fleet: FleetSnapshot,
  rankId: RankId,
  epoch: number,
  requests: number,
  tokens: number,
): FleetSnapshot {
  const rank = fleet.ranks.get(rankId);
  if (rank === undefined || rank.epoch !== epoch) return fleet;
  return withRank(fleet, {
    ...rank,
    ownRequests: Math.max(0, rank.ownRequests + requests),
    ownPrefillTokens: Math.max(0, rank.ownPrefillTokens + tokens),
  });
}

/** Ranks of one model, in a fixed order. */
export function ranksOf(fleet: FleetSnapshot, model: ModelName, role: Role): readonly Rank[] {
  const found: Rank[] = [];
  for (const rank of fleet.ranks.values()) if (rank.role === role && rank.model.name === model) found.push(rank);
  return found;
}

function withRank(fleet: FleetSnapshot, rank: Rank): FleetSnapshot {
  return { ...fleet, ranks: new Map(fleet.ranks).set(rank.rankId, rank) };
}

function without(fleet: FleetSnapshot, gone: readonly RankId[]): FleetSnapshot {
  const ranks = new Map(fleet.ranks);
  for (const rankId of gone) ranks.delete(rankId);
  const left = new Set([...ranks.values()].map((rank) => rank.workerId));
  const endedGroups = new Map([...fleet.endedGroups].filter(([workerId]) => left.has(workerId)));
  const went = gone.flatMap((rankId) => fleet.ranks.get(rankId) ?? []);
  return withoutGroupsOf(
    { ...fleet, ranks, endedGroups },
    went.filter(({ workerId }) => left.has(workerId)),
  );
}
