import { CACHE_TIERS, type CacheCounters, type CacheTier } from "#protocol/kv.ts";
import type { BlockCounts, BlockState } from "#protocol/lifecycle.ts";
import type { Role } from "#protocol/worker.ts";
import type { Metrics } from "./metrics.ts";

/** The counters of an engine that become metrics. */
export interface EngineCounters {
  readonly blocks: BlockCounts;
  readonly prefillTokens: number;
  readonly decodeTokens: number;
  readonly prefixCachedTokens: number;
  readonly draftsProposed: number;
  readonly draftsVerified: number;
  readonly draftsAccepted: number;
  readonly blocksAvailable: number;
  readonly cache: Readonly<Record<CacheTier, CacheCounters>>;
  readonly bytesSent: number;
  readonly bytesReceived: number;
  readonly framesRefused: Readonly<Record<string, number>>;
}

/** Sets the metrics that are counted by the engine: to be called before a scrape. */
export function reportEngine(metrics: Metrics, role: Role, counters: EngineCounters): void {
  for (const [state, count] of Object.entries(counters.blocks) as [BlockState, number][]) {
    metrics.gauge("margay_kv_pages", { role, state }, count);
  }
  const { free, cached } = counters.blocks;
  const total = Object.values(counters.blocks).reduce((sum, count) => sum + count, 0);
  metrics.gauge("margay_kv_used_share", { role }, total === 0 ? 0 : 1 - (free + cached) / total);
  const [direction, bytes] =
    role === "prefill" ? (["sent", counters.bytesSent] as const) : (["received", counters.bytesReceived] as const);
  metrics.countTotal("margay_kv_transfer_bytes_total", { role, direction }, bytes);
  metrics.countTotal("margay_prefill_tokens_total", { role }, counters.prefillTokens);
  metrics.countTotal("margay_decode_tokens_total", { role }, counters.decodeTokens);
  metrics.countTotal("margay_prefix_cached_tokens_total", { role }, counters.prefixCachedTokens);
  metrics.countTotal("margay_draft_tokens_total", { role, stage: "proposed" }, counters.draftsProposed);
  metrics.countTotal("margay_draft_tokens_total", { role, stage: "verified" }, counters.draftsVerified);
  metrics.countTotal("margay_draft_tokens_total", { role, stage: "accepted" }, counters.draftsAccepted);
  for (const tier of CACHE_TIERS) {
    const { hitTokens, missedTokens, evictedBlocks, refusedBlocks, bytes } = counters.cache[tier];
    metrics.countTotal("margay_kv_cache_tokens_total", { role, tier, outcome: "hit" }, hitTokens);
    metrics.countTotal("margay_kv_cache_tokens_total", { role, tier, outcome: "missed" }, missedTokens);
    metrics.countTotal("margay_kv_cache_evicted_blocks_total", { role, tier }, evictedBlocks);
    metrics.countTotal("margay_kv_cache_refused_blocks_total", { role, tier }, refusedBlocks);
    metrics.gauge("margay_kv_cache_bytes", { role, tier }, bytes);
  }
  for (const [cause, count] of Object.entries(counters.framesRefused)) {
    metrics.countTotal("margay_kv_frames_refused_total", { cause }, count);
  }
}

/** What ranks of one worker exchanged, as the engine counts it. */
export interface ExchangeCounters {
  readonly expertLoads: Float64Array;
  readonly routedRows: number;
  readonly realChoices: number;
  readonly zeroChoices: number;
  readonly bytesDispatched: number;
  readonly bytesCombined: number;
  readonly exposedMs: number;
  readonly skewMs: number;
  readonly staleMessages: number;
}

/** Sets the metrics of a rank's part in its group: to be called before a scrape. */
export function reportExchange(metrics: Metrics, role: Role, counters: ExchangeCounters): void {
  const { realChoices, zeroChoices, routedRows } = counters;
  metrics.countTotal("margay_exchange_bytes_total", { role, direction: "dispatched" }, counters.bytesDispatched);
  metrics.countTotal("margay_exchange_bytes_total", { role, direction: "combined" }, counters.bytesCombined);
  metrics.countTotal("margay_exchange_exposed_seconds_total", { role }, counters.exposedMs / 1000);
  metrics.countTotal("margay_rank_skew_seconds_total", { role }, counters.skewMs / 1000);
  metrics.countTotal("margay_exchange_stale_messages_total", { role }, counters.staleMessages);
  if (routedRows === 0) return;
  metrics.gauge("margay_zero_expert_share", { role }, zeroChoices / (realChoices + zeroChoices));
  metrics.gauge("margay_real_experts_per_token", { role }, realChoices / routedRows);
  reportExpertLoads(metrics, role, counters.expertLoads);
}

/** Of hundreds of experts four numbers: enough to see whether some are asked for far more than others. */
function reportExpertLoads(metrics: Metrics, role: Role, loads: Float64Array): void {
  const sorted = loads.toSorted();
  const mean = sorted.reduce((sum, load) => sum + load, 0) / sorted.length;
  if (!(mean > 0)) return;
  const at = (share: number): number => sorted[Math.round(share * (sorted.length - 1))]! / mean;
  metrics.gauge("margay_expert_load_over_mean", { role, expert: "busiest" }, at(1));
  metrics.gauge("margay_expert_load_over_mean", { role, expert: "ninth_decile" }, at(0.9));
  metrics.gauge("margay_expert_load_over_mean", { role, expert: "median" }, at(0.5));
  metrics.gauge("margay_expert_load_over_mean", { role, expert: "idlest" }, at(0));
}
