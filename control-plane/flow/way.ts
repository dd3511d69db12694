import type { Started } from "#protocol/decode.ts";
import type { ErrorCode } from "#protocol/errors.ts";
import type { ModelName, RankId, RequestId } from "#protocol/ids.ts";
import { BLOCK_TOKENS } from "#protocol/kv.ts";
import type { PrefillDone } from "#protocol/prefill.ts";
import type { TraceContext } from "#protocol/trace-context.ts";
import { type Rank, ranksOf } from "../fleet/fleet.ts";
import type { FleetWatch } from "../fleet/fleet-watch.ts";
import type { PlacementQuery } from "../placement/place.ts";
import type { Seat } from "./waiting-room.ts";

/** What was known of a rank when it was chosen. */
export interface Choice {
  readonly rankId: RankId;
  /** Prompt tokens that it had in its cache. */
  readonly cachedTokens: number;
  readonly requests: number;
  readonly maxRequests: number;
  /** Prompt tokens that waited on it before this one's. */
  readonly pendingTokens: number;
  /** Ranks of its role and model there were. */
  readonly outOf: number;
}

/** One placement of a request. Times are epoch milliseconds; null: it did not come to that. */
export interface WayAttempt {
  readonly attempt: number;
  readonly beganMs: number;
  /** Its place in the trace; null: the request is not traced. */
  readonly trace: TraceContext | null;
  placedMs: number | null;
  /** null: the decode rank computed the prompt. */
  prefill: Choice | null;
  decode: Choice | null;
  reservedMs: number | null;
  prefilledMs: number | null;
  prefilled: {
    readonly rankId: RankId;
    readonly cachedTokens: number;
    readonly queueMs: number;
    readonly computeMs: number;
  } | null;
  startedMs: number | null;
  transfer: { readonly pages: number; readonly bytes: number; readonly ms: number } | null;
  endedMs: number | null;
  failure: ErrorCode | null;
  /** Tokens that the request had when the attempt ended. */
  generatedTokens: number;
}

/** What became of one request: phases, places and reasons, no text. */
export interface Way {
  readonly requestId: RequestId;
  readonly model: ModelName;
  readonly tenant: string;
  readonly trace: TraceContext | null;
  readonly beganMs: number;
  readonly promptTokens: number;
  readonly attempts: WayAttempt[];
  firstTokenMs: number | null;
  endedMs: number | null;
  /** null: it is under way. */
  outcome: "ok" | ErrorCode | null;
  generatedTokens: number;
}

export function newAttempt(attempt: number, beganMs: number, trace: TraceContext | null): WayAttempt {
  return {
    ...{ attempt, beganMs, trace },
    ...{ placedMs: null, prefill: null, decode: null, reservedMs: null, prefilledMs: null, prefilled: null },
    ...{ startedMs: null, transfer: null, endedMs: null, failure: null, generatedTokens: 0 },
  };
}

export function prefilledBy({ rankId, cachedTokens, queueMs, computeMs }: PrefillDone): WayAttempt["prefilled"] {
  return { rankId, cachedTokens, queueMs, computeMs };
}

export function transferOf({ pages, bytes, transferMs }: Started): WayAttempt["transfer"] {
  return { pages, bytes, ms: transferMs };
}

/** Why these ranks: what placement saw of them. */
export function choicesOf(
  fleet: FleetWatch,
  query: PlacementQuery,
  seat: Seat,
): Pick<WayAttempt, "prefill" | "decode"> {
  const choice = (rank: Rank): Choice => ({
    rankId: rank.rankId,
    cachedTokens: BLOCK_TOKENS * fleet.prefixes.cachedBlocks(rank.rankId, query.hashes(rank.model.modelHash)),
    requests: Math.max(rank.load.requests, rank.ownRequests),
    maxRequests: rank.load.maxRequests,
    pendingTokens: Math.max(rank.load.pendingPrefillTokens, rank.ownPrefillTokens),
    outOf: ranksOf(fleet.snapshot, query.model, rank.role).length,
  });
  return { prefill: seat.prefill === null ? null : choice(seat.prefill), decode: choice(seat.decode) };
}

/** Most ways that are remembered, and those of requests under way among them. */
const MOST_WAYS = 2_000;

/** The latest requests of this control plane, by id; the oldest are forgotten first. */
export class RecentWays {
  readonly #ways = new Map<RequestId, Way>();

  add(way: Way): void {
    this.#ways.delete(way.requestId);
    this.#ways.set(way.requestId, way);
    if (this.#ways.size > MOST_WAYS) this.#ways.delete(this.#ways.keys().next().value!);
  }

  /** At most `most` of a tenant's, the latest first. */
  latest(tenant: string, most: number): readonly Way[] {
    return [...this.#ways.values()]
      .filter((way) => way.tenant === tenant)
      .slice(-most)
      .reverse();
  }

  find(requestId: string): Way | null {
    return this.#ways.get(requestId as RequestId) ?? null;
  }
}
