import type { ModelName, RankId } from "#protocol/ids.ts";
import { BLOCK_TOKENS } from "#protocol/kv.ts";
import { compatible } from "#protocol/model-card.ts";
import { type FleetSnapshot, pairKey, type Rank, ranksOf } from "../fleet/fleet.ts";
import type { PrefixLookup } from "../fleet/prefix-index.ts";

/** What placement needs to know of a request. */
export interface PlacementQuery {
  readonly model: ModelName;
  /** Chained hashes of the prompt's full blocks. */
  readonly hashes: readonly string[];
  readonly promptTokens: number;
  /** Blocks for prompt and the longest answer. */
  readonly blocks: number;
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
  | { readonly kind: "impossible"; readonly blocksTotal: number };

/** Prompt tokens per second assumed of a rank that has not measured itself yet. */
const UNKNOWN_RATE = 200;

/**
 * Where a request goes: pure over a snapshot, so equal inputs give equal placements.
 * The decode rank is chosen first (its cache decides what must be computed and moved), then a prefill rank for it.
 */
export function place(fleet: FleetSnapshot, prefixes: PrefixLookup, query: PlacementQuery, nowMs: number): Placement {
  const all = ranksOf(fleet, query.model, "decode");
  const largest = Math.max(0, ...all.map((rank) => rank.load.blocksTotal));
  if (all.length > 0 && largest > 0 && query.blocks > largest) return { kind: "impossible", blocksTotal: largest };

  const cachedTokens = (rank: Rank): number => prefixes.cachedBlocks(rank.rankId, query.hashes) * BLOCK_TOKENS;
  const decodes = all
    .filter(
      (rank) => isOpen(rank, nowMs) && hasRoom(rank, query.blocks - prefixes.cachedBlocks(rank.rankId, query.hashes)),
    )
    .map((rank) => ({ rank, score: decodeScore(rank, cachedTokens(rank), query) }))
    .sort(byScore);
  if (decodes.length === 0) return { kind: "wait", missing: "decode" };

  for (const { rank: decode } of decodes) {
    if (splitOrLocal(query, cachedTokens(decode)) === "local") return { kind: "local", decode };
    const prefill = choosePrefill(fleet, prefixes, query, decode, nowMs);
    if (prefill !== null) return { kind: "split", prefill, decode };
  }
  return { kind: "wait", missing: "prefill" };
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
  const ranked = ranksOf(fleet, query.model, "prefill")
    .filter((rank) => isOpen(rank, nowMs) && hasRoom(rank, Math.ceil(query.promptTokens / BLOCK_TOKENS)))
    .filter((rank) => compatible(rank.model, decode.model))
    .filter((rank) => (fleet.pairs.get(pairKey(rank.rankId, decode.rankId)) ?? 0) <= nowMs)
    .map((rank) => {
      const cached = prefixes.cachedBlocks(rank.rankId, query.hashes) * BLOCK_TOKENS;
      return {
        rank,
        score: -secondsToFinish(rank, query.promptTokens - cached) - (query.avoid.has(rank.rankId) ? 1e6 : 0),
      };
    })
    .sort(byScore);
  return ranked[0]?.rank ?? null;
}

function isOpen(rank: Rank, nowMs: number): boolean {
  return rank.state === "ready" && rank.coolUntilMs <= nowMs && requestsOn(rank) < rank.load.maxRequests;
}

function hasRoom(rank: Rank, blocks: number): boolean {
  return rank.load.blocksAvailable >= blocks;
}

/** What the rank said and what this control plane gave it since: whichever is more. */
function requestsOn(rank: Rank): number {
  return Math.max(rank.load.requests, rank.ownRequests);
}

function secondsToFinish(rank: Rank, tokens: number): number {
  const rate = rank.load.prefillTokensPerSecond > 0 ? rank.load.prefillTokensPerSecond : UNKNOWN_RATE;
  return (Math.max(rank.load.pendingPrefillTokens, rank.ownPrefillTokens) + tokens) / rate;
}

/** Between 1 (all of the prompt cached, nothing to do) and -1; a rank to avoid comes last. */
function decodeScore(rank: Rank, cachedTokens: number, query: PlacementQuery): number {
  const cached = cachedTokens / Math.max(1, query.promptTokens);
  return cached - requestsOn(rank) / rank.load.maxRequests - (query.avoid.has(rank.rankId) ? 10 : 0);
}

function byScore(
  a: { readonly rank: Rank; readonly score: number },
  b: { readonly rank: Rank; readonly score: number },
): number {
  return b.score - a.score || (a.rank.rankId < b.rank.rankId ? -1 : 1);
}
