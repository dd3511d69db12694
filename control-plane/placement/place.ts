import type { ModelName, RankId } from "#protocol/ids.ts";
import { BLOCK_TOKENS } from "#protocol/kv.ts";
import { compatible } from "#protocol/model-card.ts";
import { type FleetSnapshot, pairKey, type Rank, ranksOf, SKEWED_BEATS } from "../fleet/fleet.ts";
import type { PrefixLookup } from "../fleet/prefix-index.ts";

/** What placement needs to know of a request. */
export interface PlacementQuery {
  readonly model: ModelName;
  /** Chained hashes of the prompt's full blocks, as a model (by its hash) counts them. */
  readonly hashes: (modelHash: string) => readonly string[];
  readonly promptTokens: number;
  /** Prompt and the longest answer, before the model's context ends it. */
  readonly wholeTokens: number;
  /** Ranks that failed this request: taken only when there is no other. */
  readonly avoid: ReadonlySet<RankId>;
  /** A decode rank computes at most this many prompt tokens itself; 0: none. */
  readonly localTokens: number;
}

export type Placement =
  | { readonly kind: "split"; readonly prefill: Rank; readonly decode: Rank }
  /** The decode rank computes the missing part of the prompt itself. */
  | { readonly kind: "local"; readonly decode: Rank }
  | { readonly kind: "wait"; readonly missing: "decode" | "prefill" }
  /** No rank of the fleet could ever hold it. */
  | { readonly kind: "impossible"; readonly blocks: number; readonly blocksTotal: number };

interface Scored {
  readonly rank: Rank;
  readonly cachedTokens: number;
  readonly score: number;
}

/** Prompt tokens per second assumed of a rank that has not measured itself yet. */
const UNKNOWN_RATE = 200;
/** A prefill rank admits what it can start within this time; the rest waits here, in order. */
const START_WITHIN_SECONDS = 1;
/** Prompt tokens that may wait on a rank whose rate is not known. */
const UNMEASURED_TOKENS = 1_024;

/**
 * Where a request goes: pure over a snapshot, so equal inputs give equal placements.
 * The decode rank is chosen first (its cache decides what must be computed and moved), then a prefill rank for it.
 */
export function place(fleet: FleetSnapshot, prefixes: PrefixLookup, query: PlacementQuery, nowMs: number): Placement {
  const all = ranksOf(fleet, query.model, "decode");
  const impossible = tooLarge(all, (rank) => blocksOnDecode(rank, query));
  if (impossible !== null) return impossible;

  const decodes: Scored[] = [];
  for (const rank of all) {
    if (!isOpen(rank, nowMs)) continue;
    const cachedTokens = cachedTokensOn(rank, prefixes, query);
    if (!hasRoom(rank, blocksOnDecode(rank, query) - cachedTokens / BLOCK_TOKENS)) continue;
    decodes.push({ rank, cachedTokens, score: decodeScore(rank, cachedTokens, query) });
  }
  if (decodes.length === 0) return { kind: "wait", missing: "decode" };

  // Scored once for all decode ranks: with every prefill rank full, each of them would look in vain.
  let prefills: readonly Scored[] | null = null;
  for (const { rank: decode, cachedTokens } of fromTheBest(decodes)) {
    if (splitOrLocal(query, cachedTokens) === "local") return { kind: "local", decode };
    prefills ??= openPrefills(fleet, prefixes, query, nowMs);
    const prefill = bestFor(decode, prefills, fleet, nowMs);
    if (prefill !== null) return { kind: "split", prefill, decode };
  }
  const needed = blocksOf(query.promptTokens);
  return tooLarge(ranksOf(fleet, query.model, "prefill"), () => needed) ?? { kind: "wait", missing: "prefill" };
}

/** A prompt of which little is missing is not worth a second rank and a transfer. */
export function splitOrLocal(query: PlacementQuery, cachedTokens: number): "split" | "local" {
  return query.promptTokens - cachedTokens <= query.localTokens ? "local" : "split";
}

/** The prefill rank that would be done first with this prompt and may talk to `decode`; null when none is open. */
export function choosePrefill(
  fleet: FleetSnapshot,
  prefixes: PrefixLookup,
  query: PlacementQuery,
  decode: Rank,
  nowMs: number,
): Rank | null {
  return bestFor(decode, openPrefills(fleet, prefixes, query, nowMs), fleet, nowMs);
}

/** The best of those that may talk to `decode`. */
function bestFor(decode: Rank, prefills: readonly Scored[], fleet: FleetSnapshot, nowMs: number): Rank | null {
  let best: Scored | null = null;
  for (const one of prefills) {
    if ((best === null || byScore(one, best) < 0) && isPair(fleet, one.rank, decode, nowMs)) best = one;
  }
  return best?.rank ?? null;
}

/** All of them, the best first. Nearly always the first one will do: the others are sorted when they are asked for. */
function* fromTheBest(scored: readonly Scored[]): Generator<Scored> {
  const best = scored.reduce((a, b) => (byScore(b, a) < 0 ? b : a));
  yield best;
  for (const one of scored.toSorted(byScore)) if (one !== best) yield one;
}

/** Prefill ranks that could begin soon; the one that would be done first with this prompt has the highest score. */
function openPrefills(
  fleet: FleetSnapshot,
  prefixes: PrefixLookup,
  query: PlacementQuery,
  nowMs: number,
): readonly Scored[] {
  const needed = blocksOf(query.promptTokens);
  const open: Scored[] = [];
  for (const rank of ranksOf(fleet, query.model, "prefill")) {
    if (!isOpen(rank, nowMs) || !startsSoon(rank) || !hasRoom(rank, needed)) continue;
    const cachedTokens = cachedTokensOn(rank, prefixes, query);
    const seconds = secondsToFinish(rank, query.promptTokens - cachedTokens);
    open.push({ rank, cachedTokens, score: -seconds - (query.avoid.has(rank.rankId) ? 1e6 : 0) });
  }
  return open;
}

/** KV made by one can be read by the other, and the way between them did not fail a moment ago. */
function isPair(fleet: FleetSnapshot, prefill: Rank, decode: Rank, nowMs: number): boolean {
  if (!compatible(prefill.model, decode.model)) return false;
  return fleet.pairs.size === 0 || (fleet.pairs.get(pairKey(prefill.rankId, decode.rankId)) ?? 0) <= nowMs;
}

/** Not null when ranks are known and the pool of none could ever hold what they need. */
function tooLarge(ranks: readonly Rank[], needed: (rank: Rank) => number): Placement | null {
  let closest: { readonly blocks: number; readonly blocksTotal: number } | null = null;
  for (const rank of ranks) {
    const { blocksTotal } = rank.load;
    const blocks = needed(rank);
    // A rank that is still loading does not know its pool yet.
    if (blocksTotal === 0 || blocks <= blocksTotal) return null;
    if (closest === null || blocksTotal > closest.blocksTotal) closest = { blocks, blocksTotal };
  }
  return closest === null ? null : { kind: "impossible", ...closest };
}

function blocksOf(tokens: number): number {
  return Math.ceil(tokens / BLOCK_TOKENS);
}

/** What a decode rank reserves: the whole request, as far as the model's context goes. */
function blocksOnDecode(rank: Rank, query: PlacementQuery): number {
  return blocksOf(Math.min(query.wholeTokens, Math.max(rank.model.contextLength, query.promptTokens)));
}

function cachedTokensOn(rank: Rank, prefixes: PrefixLookup, query: PlacementQuery): number {
  return prefixes.cachedBlocks(rank.rankId, query.hashes(rank.model.modelHash)) * BLOCK_TOKENS;
}

function isOpen(rank: Rank, nowMs: number): boolean {
  return (
    rank.state === "ready" &&
    rank.skewedBeats < SKEWED_BEATS &&
    rank.coolUntilMs <= nowMs &&
    requestsOn(rank) < rank.load.maxRequests
  );
}

function hasRoom(rank: Rank, blocks: number): boolean {
  return rank.load.blocksAvailable >= blocks;
}

/** What the rank said and what this control plane gave it since: whichever is more. */
function requestsOn(rank: Rank): number {
  return Math.max(rank.load.requests, rank.ownRequests);
}

function pendingTokens(rank: Rank): number {
  return Math.max(rank.load.pendingPrefillTokens, rank.ownPrefillTokens);
}

function startsSoon(rank: Rank): boolean {
  const rate = rank.load.prefillTokensPerSecond;
  return pendingTokens(rank) <= (rate === 0 ? UNMEASURED_TOKENS : rate * START_WITHIN_SECONDS);
}

function secondsToFinish(rank: Rank, tokens: number): number {
  const rate = rank.load.prefillTokensPerSecond > 0 ? rank.load.prefillTokensPerSecond : UNKNOWN_RATE;
  return (pendingTokens(rank) + tokens) / rate;
}

/** Between 1 (all of the prompt cached, nothing to do) and -1; a rank to avoid comes last. */
function decodeScore(rank: Rank, cachedTokens: number, query: PlacementQuery): number {
  const cached = cachedTokens / Math.max(1, query.promptTokens);
  return cached - requestsOn(rank) / rank.load.maxRequests - (query.avoid.has(rank.rankId) ? 10 : 0);
}

function byScore(a: Scored, b: Scored): number {
  return b.score - a.score || (a.rank.rankId < b.rank.rankId ? -1 : 1);
}
