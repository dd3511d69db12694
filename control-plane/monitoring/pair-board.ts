import type { Board } from "./board.ts";
import { mean, over, quantile, rate } from "./promql.ts";

/** Prefill, decoding and the KV between. */
export const PAIR_BOARD: Board = {
  name: "prefill-decode",
  title: "prefill, decoding and KV",
  panels: [
    {
      title: "Tokens computed a second",
      about:
        "Prompt tokens of prefill ranks (and of decode ranks that compute short prompts themselves), generated ones.",
      unit: "short",
      queries: [
        { expr: rate("margay_prefill_tokens_total", ["role"]), legend: "prompt, {{role}}" },
        { expr: rate("margay_decode_tokens_total", ["role"]), legend: "generated, {{role}}" },
      ],
    },
    {
      title: "Requests on ranks",
      about: "Admitted and not ended.",
      unit: "short",
      queries: [{ expr: over("sum", "margay_worker_requests", ["role"]), legend: "{{role}}" }],
    },
    {
      title: "Time of a step",
      about: "95 of 100 steps took less.",
      unit: "s",
      queries: [
        { expr: quantile(0.95, "margay_step_seconds", ["role"]), legend: "{{role}} p95" },
        { expr: mean("margay_step_seconds", ["role"]), legend: "{{role}} mean" },
      ],
    },
    {
      title: "KV blocks, by state",
      about: "They add up to the pools. Cached ones are given up when others need room.",
      unit: "short",
      stacked: true,
      queries: [{ expr: over("sum", "margay_kv_pages", ["role", "state"]), legend: "{{role}} {{state}}" }],
    },
    {
      title: "Share of KV in use, fullest rank",
      about: "At 1 streams are put off for others (preemptions).",
      unit: "percentunit",
      queries: [{ expr: over("max", "margay_kv_used_share", ["role"]), legend: "{{role}}" }],
    },
    {
      title: "Streams put off for want of KV",
      about: "They go on later; what they had is computed again.",
      unit: "ops",
      queries: [{ expr: rate("margay_preemptions_total", []), legend: "preemptions" }],
    },
    {
      title: "KV moved",
      about: "Bytes a second, sent by prefill ranks and received by decode ranks.",
      unit: "Bps",
      queries: [{ expr: rate("margay_kv_transfer_bytes_total", ["role", "direction"]), legend: "{{direction}}" }],
    },
    {
      title: "Time of a transfer",
      about: "From the first announced page of a request to its last sealed one.",
      unit: "s",
      queries: [0.5, 0.95, 0.99].map((share) => ({
        expr: quantile(share, "margay_kv_transfer_seconds", []),
        legend: `p${100 * share}`,
      })),
    },
    {
      title: "KV pages refused, by cause",
      about: "Refused pages are sent again or computed elsewhere; damaged ones never reach a model.",
      unit: "ops",
      queries: [{ expr: rate("margay_kv_frames_refused_total", ["cause"]), legend: "{{cause}}" }],
    },
    {
      title: "Share of prompt tokens in the prefix cache",
      about: "Of the tokens that a tier was asked for.",
      unit: "percentunit",
      queries: [
        {
          expr: `${rate("margay_kv_cache_tokens_total", ["role", "tier"], { outcome: "hit" })} / ${rate("margay_kv_cache_tokens_total", ["role", "tier"])}`,
          legend: "{{role}} {{tier}}",
        },
      ],
    },
    {
      title: "Cached KV",
      about: "Bytes that each tier holds for later.",
      unit: "bytes",
      queries: [{ expr: over("sum", "margay_kv_cache_bytes", ["role", "tier"]), legend: "{{role}} {{tier}}" }],
    },
    {
      title: "Refusals by ranks",
      about: "By code. A busy rank is no fault: the request goes elsewhere.",
      unit: "ops",
      queries: [{ expr: rate("margay_worker_refused_total", ["role", "code"]), legend: "{{role}} {{code}}" }],
    },
  ],
};
