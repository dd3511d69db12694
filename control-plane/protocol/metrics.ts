import { ERRORS, type ErrorCode } from "./errors.ts";
import { CACHE_TIERS } from "./kv.ts";
import { BLOCK_STATES } from "./lifecycle.ts";
import { type MetricSpec, STEP_SECONDS, TEXT, TOKENS, WAIT_SECONDS } from "./metric-spec.ts";
import { START_STEPS } from "./scaling.ts";
import { TENANT_METRICS } from "./tenant-metrics.ts";
import { Role, WorkerState } from "./worker.ts";

const roles = Role.options;
const codes = Object.keys(ERRORS) as ErrorCode[];
const outcomes: readonly ("ok" | ErrorCode)[] = ["ok", ...codes];
/** Messages that may come twice. */
const repeatable = [
  "prefill-work",
  "prefill-target",
  "prefill-done",
  "prefill-failed",
  "reserve-kv",
  "start-decode",
  "token-chunk",
] as const;

/**
 * Every metric, declared once. service/metrics.ts turns a declaration into a typed handle, so a wrong name, label or
 * (for closed labels) value does not compile; boards, alerts and documents are made from this list.
 */
export const METRICS = {
  margay_requests_total: {
    type: "counter",
    help: "Requests that ended, by how: ok or the error's code.",
    unit: "requests",
    labels: { model: TEXT, outcome: outcomes },
  },
  ...TENANT_METRICS,
  margay_http_requests_in_flight: {
    type: "gauge",
    help: "HTTP requests being answered now.",
    unit: "requests",
    labels: {},
  },
  margay_request_seconds: {
    type: "histogram",
    help: "Whole life of a request, from parsed to last token.",
    unit: "seconds",
    labels: { model: TEXT },
    buckets: WAIT_SECONDS,
  },
  margay_time_to_first_token_seconds: {
    type: "histogram",
    help: "From a parsed request to its first generated token.",
    unit: "seconds",
    labels: { model: TEXT },
    buckets: WAIT_SECONDS,
  },
  margay_time_per_output_token_seconds: {
    type: "histogram",
    help: "Time after the first token divided by the further tokens, per request.",
    unit: "seconds",
    labels: { model: TEXT },
    buckets: STEP_SECONDS,
  },
  margay_queue_seconds: {
    type: "histogram",
    help: "Wait of a request in the control plane before it was placed.",
    unit: "seconds",
    labels: { model: TEXT },
    buckets: WAIT_SECONDS,
  },
  margay_waiting_requests: {
    type: "gauge",
    help: "Requests waiting for a worker now.",
    unit: "requests",
    labels: { model: TEXT },
  },
  margay_running_requests: {
    type: "gauge",
    help: "Requests that came to this control plane and are being served now, those that wait left out.",
    unit: "requests",
    labels: { model: TEXT },
  },
  margay_prompt_tokens_total: {
    type: "counter",
    help: "Prompt tokens of accepted requests.",
    unit: "tokens",
    labels: { model: TEXT },
  },
  margay_generated_tokens_total: {
    type: "counter",
    help: "Tokens delivered to clients.",
    unit: "tokens",
    labels: { model: TEXT },
  },
  margay_retries_total: {
    type: "counter",
    help: "Attempts that failed and were followed by another, by the failure's code.",
    unit: "events",
    labels: { code: codes },
  },
  margay_cancellations_total: {
    type: "counter",
    help: "Cancellations sent to workers that still may have held something, by whether the worker acknowledged.",
    unit: "events",
    labels: { outcome: ["acknowledged", "given_up"] },
  },
  margay_streams_resumed_total: {
    type: "counter",
    help: "Token streams repaired by asking the decode worker again after a gap or a silence.",
    unit: "events",
    labels: {},
  },
  margay_leader: {
    type: "gauge",
    help: "1 while this control plane decides how many workers there are.",
    unit: "boolean",
    labels: {},
  },
  margay_api_server_away_seconds: {
    type: "gauge",
    help: "How long the Kubernetes API server has not answered this control plane; 0: it answers.",
    unit: "seconds",
    labels: {},
  },
  margay_start_seconds: {
    type: "gauge",
    help: "What the last start of a worker took, step by step: a rank tells of its own, the control plane of finding places to run.",
    unit: "seconds",
    labels: { role: roles, step: START_STEPS },
  },
  margay_wanted_workers: {
    type: "gauge",
    help: "Workers that are wanted, told by the control plane that decides.",
    unit: "workers",
    labels: { model: TEXT, role: roles },
  },
  margay_scaling_decisions_total: {
    type: "counter",
    help: "Changes of the number of workers that are wanted.",
    unit: "events",
    labels: { model: TEXT, role: roles, direction: ["grow", "shrink"] },
  },
  margay_cold_starts_total: {
    type: "counter",
    help: "Workers started because a request waited while there was none.",
    unit: "workers",
    labels: {},
  },
  margay_worker_restarts_total: {
    type: "counter",
    help: "Workers started again after a crash.",
    unit: "workers",
    labels: { role: roles },
  },
  margay_workers: {
    type: "gauge",
    help: "Worker ranks known to this control plane, by state.",
    unit: "workers",
    labels: { role: roles, state: [...WorkerState.options, "lost"] as const },
  },
  margay_worker_requests: {
    type: "gauge",
    help: "Requests admitted by this worker and not ended.",
    unit: "requests",
    labels: { role: roles },
  },
  margay_worker_refused_total: {
    type: "counter",
    help: "Requests this worker refused, by code.",
    unit: "requests",
    labels: { role: roles, code: codes },
  },
  margay_preemptions_total: {
    type: "counter",
    help: "Streams that gave their KV blocks back for a more entitled one, to go on later.",
    unit: "events",
    labels: {},
  },
  margay_orphans_total: {
    type: "counter",
    help: "Requests ended because the control plane that owned them fell silent.",
    unit: "requests",
    labels: { role: roles },
  },
  margay_kv_pages: {
    type: "gauge",
    help: "Blocks of the KV pool (the pages of 64 tokens) by state; they add up to the pool.",
    unit: "blocks",
    labels: { role: roles, state: BLOCK_STATES },
  },
  margay_kv_used_share: {
    type: "gauge",
    help: "Share of the KV blocks that requests hold: neither free nor cached for later.",
    unit: "ratio",
    labels: { role: roles },
  },
  margay_kv_transfer_bytes_total: {
    type: "counter",
    help: "KV bytes moved between workers.",
    unit: "bytes",
    labels: { role: roles, direction: ["sent", "received"] },
  },
  margay_kv_transfer_seconds: {
    type: "histogram",
    help: "From the first announced page of a request to its last sealed one.",
    unit: "seconds",
    labels: {},
    buckets: WAIT_SECONDS,
  },
  margay_kv_frames_refused_total: {
    type: "counter",
    help: "Announced KV pages or connections refused by the receiver, by cause.",
    unit: "events",
    labels: { cause: TEXT },
  },
  margay_kv_cache_tokens_total: {
    type: "counter",
    help: "Prompt tokens that a tier of the prefix cache was asked for, by what it had: rows in the pool, or blocks evicted from it.",
    unit: "tokens",
    labels: { role: roles, tier: CACHE_TIERS, outcome: ["hit", "missed"] },
  },
  margay_kv_cache_bytes: {
    type: "gauge",
    help: "KV bytes that a tier of the prefix cache holds for later.",
    unit: "bytes",
    labels: { role: roles, tier: CACHE_TIERS },
  },
  margay_kv_cache_evicted_blocks_total: {
    type: "counter",
    help: "Cached blocks that had to go for others, by tier.",
    unit: "blocks",
    labels: { role: roles, tier: CACHE_TIERS },
  },
  margay_kv_cache_refused_blocks_total: {
    type: "counter",
    help: "Cached blocks that were damaged when they were wanted back, by tier; they are computed anew.",
    unit: "blocks",
    labels: { role: roles, tier: CACHE_TIERS },
  },
  margay_prefix_cached_tokens_total: {
    type: "counter",
    help: "Prompt tokens taken from the prefix cache rather than computed.",
    unit: "tokens",
    labels: { role: roles },
  },
  margay_prefill_tokens_total: {
    type: "counter",
    help: "Prompt tokens computed.",
    unit: "tokens",
    labels: { role: roles },
  },
  margay_decode_tokens_total: {
    type: "counter",
    help: "Tokens generated by decode steps.",
    unit: "tokens",
    labels: { role: roles },
  },
  margay_draft_tokens_total: {
    type: "counter",
    help: "Draft tokens: proposed by the draft layer, verified by the model, and accepted as tokens that cost no step of their own.",
    unit: "tokens",
    labels: { role: roles, stage: ["proposed", "verified", "accepted"] },
  },
  margay_batch_tokens: {
    type: "histogram",
    help: "Tokens computed by one step.",
    unit: "tokens",
    labels: { role: roles },
    buckets: TOKENS,
  },
  margay_step_seconds: {
    type: "histogram",
    help: "Compute time of one step.",
    unit: "seconds",
    labels: { role: roles },
    buckets: STEP_SECONDS,
  },
  margay_exchange_bytes_total: {
    type: "counter",
    help: "Bytes that a rank sent to others of its worker: rows for their experts, and what its experts made of theirs.",
    unit: "bytes",
    labels: { role: roles, direction: ["dispatched", "combined"] },
  },
  margay_exchange_exposed_seconds_total: {
    type: "counter",
    help: "Time that steps of a rank stood still for others of its worker: what no compute hid.",
    unit: "seconds",
    labels: { role: roles },
  },
  margay_exchange_stale_messages_total: {
    type: "counter",
    help: "Messages of a group that had ended, refused by a rank.",
    unit: "events",
    labels: { role: roles },
  },
  margay_rank_skew_seconds_total: {
    type: "counter",
    help: "Time that a rank was ready for its steps before the last one of its worker.",
    unit: "seconds",
    labels: { role: roles },
  },
  margay_zero_expert_share: {
    type: "gauge",
    help: "Share of zero-computation experts among what the router chose.",
    unit: "ratio",
    labels: { role: roles },
  },
  margay_real_experts_per_token: {
    type: "gauge",
    help: "Real experts that a row of a mixture layer chose, on average.",
    unit: "experts",
    labels: { role: roles },
  },
  margay_expert_imbalance: {
    type: "gauge",
    help: "Load of a worker's busiest rank over the mean of its ranks, by the latest loads: under the map that was in use, and under the one that is.",
    unit: "ratio",
    labels: { worker: TEXT, map: ["before", "after"] },
  },
  margay_expert_load_over_mean: {
    type: "gauge",
    help: "Rows that a rank sent to an expert over the mean of all real experts: of the busiest, of the one that nine in ten do not exceed, of the middle one, of the idlest.",
    unit: "ratio",
    labels: { role: roles, expert: ["busiest", "ninth_decile", "median", "idlest"] },
  },
  margay_expert_moves_total: {
    type: "counter",
    help: "Experts that a rank took over to even out the load.",
    unit: "experts",
    labels: { role: roles },
  },
  margay_groups_formed_total: {
    type: "counter",
    help: "Groups of ranks that were formed, by whether all members joined.",
    unit: "events",
    labels: { role: roles, outcome: ["whole", "failed"] },
  },
  margay_duplicate_messages_total: {
    type: "counter",
    help: "Messages ignored because they were already obeyed or belong to an earlier attempt, by message kind.",
    unit: "events",
    labels: { kind: repeatable },
  },
  margay_trace_spans_total: {
    type: "counter",
    help: "Spans that were to be exported, by whether the collector took them.",
    unit: "events",
    labels: { outcome: ["sent", "dropped"] },
  },
  margay_bus_connected: {
    type: "gauge",
    help: "1 while the message bus is connected.",
    unit: "boolean",
    labels: {},
  },
  margay_bus_reconnects_total: {
    type: "counter",
    help: "Times the message bus came back after an outage.",
    unit: "events",
    labels: {},
  },
  margay_bus_rejected_total: {
    type: "counter",
    help: "Messages received that were not understood, by kind of subject.",
    unit: "events",
    labels: { subject: TEXT },
  },
  margay_bus_dropped_total: {
    type: "counter",
    help: "Messages not sent because the bus was disconnected, by kind of subject.",
    unit: "events",
    labels: { subject: TEXT },
  },
  margay_bus_denied_total: {
    type: "counter",
    help: "Publications and subscriptions the NATS server denied to this process.",
    unit: "events",
    labels: { operation: ["publish", "subscribe"] },
  },
} as const satisfies Readonly<Record<string, MetricSpec>>;

type Metrics = typeof METRICS;
export type MetricName = keyof Metrics;
/** Names of all metrics of one type. */
export type MetricOf<T extends MetricSpec["type"]> = {
  [N in MetricName]: Metrics[N]["type"] extends T ? N : never;
}[MetricName];
/** Exactly the labels of one metric; `Record<string, never>` for none. */
export type LabelsOf<N extends MetricName> = keyof Metrics[N]["labels"] extends never
  ? Readonly<Record<string, never>>
  : {
      readonly [L in keyof Metrics[N]["labels"]]: Metrics[N]["labels"][L] extends readonly (infer V)[] ? V : string;
    };
