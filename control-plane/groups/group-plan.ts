import type { Rank } from "../fleet/fleet.ts";

/** What a worker's ranks need so that they step together. */
export type GroupMove =
  /** They do, or nothing can be done yet. */
  | { readonly kind: "none" }
  /** A new group of these ranks, in order of their numbers. */
  | { readonly kind: "form"; readonly ranks: readonly Rank[] };

/** What is remembered of a worker between two looks. Monotonic milliseconds. */
export interface GroupHistory {
  /** The ranks that could be in a group, and since when they are the same. See `candidateKey`. */
  readonly key: string;
  readonly sinceMs: number;
  /** A group of exactly these was asked for: not again before then. */
  readonly notBeforeMs: number;
}

export interface GroupRules {
  /** Fewest ranks a group may go on with. */
  readonly leastRanks: number;
}

/** Ranks are left this long to say the same of a change that each of them notices by itself. */
export const SETTLE_MS = 100;
/** A group that was whole goes on without those who are not back by then. */
export const REDUCE_MS = 300;
/** A first group waits this long for ranks that are still loading. */
export const FIRST_WAIT_MS = 60_000;

/** The ranks of a worker that can be in a group now, by number. */
export function candidatesOf(ranks: readonly Rank[]): readonly Rank[] {
  return ranks.filter(({ state }) => state === "forming" || state === "ready").sort((a, b) => a.rank - b.rank);
}

/** Changes whenever another group, or the same once more, may be needed. */
export function candidateKey(candidates: readonly Rank[]): string {
  return candidates.map(({ rank, epoch, lostGroup }) => `${rank}:${epoch}:${lostGroup?.epoch ?? 0}`).join(" ");
}

/** The history after a look at `nowMs`. */
export function withLook(history: GroupHistory | undefined, ranks: readonly Rank[], nowMs: number): GroupHistory {
  const key = candidateKey(candidatesOf(ranks));
  return history?.key === key ? history : { key, sinceMs: nowMs, notBeforeMs: 0 };
}

/**
 * What to do for one worker of several ranks: pure.
 *
 * - a group of all ranks is formed as soon as all are there, also while a smaller one works: a replacement has come
 * - one that was lost goes on with those who live, at the latest after REDUCE_MS, if they are enough
 * - nothing is formed while a rank drains: the worker is about to end, and its ranks leave together
 */
export function planGroup(ranks: readonly Rank[], history: GroupHistory, rules: GroupRules, nowMs: number): GroupMove {
  const candidates = candidatesOf(ranks);
  const first = candidates[0];
  if (first === undefined || isWhole(candidates) || ranks.some(({ state }) => state === "draining")) {
    return { kind: "none" };
  }
  const waitedMs = nowMs - history.sinceMs;
  const complete = candidates.length === first.ranks;
  const wasWhole = candidates.some(({ membership, lostGroup }) => membership !== null || lostGroup !== null);
  const waitMs = complete ? SETTLE_MS : wasWhole ? REDUCE_MS : FIRST_WAIT_MS;
  if (waitedMs < waitMs || nowMs < history.notBeforeMs) return { kind: "none" };
  if (!complete && candidates.length < Math.min(rules.leastRanks, first.ranks)) return { kind: "none" };
  return { kind: "form", ranks: candidates };
}

/** All of them are in one group, and nobody else is. */
export function isWhole(candidates: readonly Rank[]): boolean {
  const group = candidates[0]?.membership ?? null;
  if (group === null || group.members.length !== candidates.length) return false;
  return candidates.every(
    ({ state, rank, membership }) =>
      state === "ready" && membership?.epoch === group.epoch && group.members.includes(rank),
  );
}
