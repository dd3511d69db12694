import { METRICS, type MetricName } from "./metrics.ts";
import { Role } from "./worker.ts";

/** Processes that tell metrics. */
export type Teller = "control-plane" | Role;
export const TELLERS: readonly Teller[] = ["control-plane", ...Role.options];

const EVERYBODYS = [
  "margay_duplicate_messages_total",
  "margay_trace_spans_total",
  "margay_bus_connected",
  "margay_bus_reconnects_total",
  "margay_bus_rejected_total",
  "margay_bus_dropped_total",
  "margay_bus_denied_total",
] as const satisfies readonly MetricName[];

const RANKS = [
  "margay_worker_requests",
  "margay_worker_refused_total",
  "margay_orphans_total",
  "margay_kv_pages",
  "margay_kv_used_share",
  "margay_kv_transfer_bytes_total",
  "margay_kv_frames_refused_total",
  "margay_kv_cache_tokens_total",
  "margay_kv_cache_bytes",
  "margay_kv_cache_evicted_blocks_total",
  "margay_kv_cache_refused_blocks_total",
  "margay_prefix_cached_tokens_total",
  "margay_prefill_tokens_total",
  "margay_decode_tokens_total",
  "margay_draft_tokens_total",
  "margay_batch_tokens",
  "margay_step_seconds",
  "margay_exchange_bytes_total",
  "margay_exchange_exposed_seconds_total",
  "margay_exchange_stale_messages_total",
  "margay_rank_skew_seconds_total",
  "margay_zero_expert_share",
  "margay_real_experts_per_token",
  "margay_expert_load_over_mean",
] as const satisfies readonly MetricName[];

const DECODE_RANKS = [
  "margay_preemptions_total",
  "margay_kv_transfer_seconds",
] as const satisfies readonly MetricName[];

/** Who tells a metric; what no rank tells is the control plane's. */
export function tellersOf(name: MetricName): readonly Teller[] {
  const among = (names: readonly MetricName[]): boolean => names.includes(name);
  if (among(EVERYBODYS)) return TELLERS;
  if (among(RANKS)) return Role.options;
  if (among(DECODE_RANKS)) return ["decode"];
  return ["control-plane"];
}

/** A prefill rank sends KV and a decode rank receives it, so that each role has one direction of its own. */
const DIRECTION: Readonly<Record<Role, string>> = { prefill: "sent", decode: "received" };

/**
 * All label sets that a metric of this teller can have; null: some label's values are known only when they come. `models`
 * are those that the teller serves.
 */
export function seriesOf(name: MetricName, teller: Teller, models: readonly string[]): readonly Labels[] | null {
  let series: readonly Labels[] = [{}];
  for (const [label, declared] of Object.entries(METRICS[name].labels) as [string, readonly string[] | "text"][]) {
    const values = valuesOf(name, label, declared, teller, models);
    if (values === null) return null;
    series = series.flatMap((labels) => values.map((value) => ({ ...labels, [label]: value })));
  }
  return series;
}

type Labels = Readonly<Record<string, string>>;

function valuesOf(
  name: MetricName,
  label: string,
  declared: readonly string[] | "text",
  teller: Teller,
  models: readonly string[],
): readonly string[] | null {
  if (declared === "text") return label === "model" ? models : null;
  if (teller === "control-plane") return declared;
  if (label === "role") return [teller];
  if (label === "direction" && name === "margay_kv_transfer_bytes_total") return [DIRECTION[teller]];
  return declared;
}
