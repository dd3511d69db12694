import type { Board, Query } from "./board.ts";
import { MOE_BOARD } from "./moe-board.ts";
import { PAIR_BOARD } from "./pair-board.ts";
import { mean, over, quantile, rate } from "./promql.ts";
import { TENANT_BOARD } from "./tenant-board.ts";

const OVERVIEW: Board = {
  name: "overview",
  title: "overview",
  panels: [
    {
      title: "Requests that end, by how",
      about: "ok, or the code of the error that the client was told.",
      unit: "reqps",
      stacked: true,
      queries: [{ expr: rate("margay_requests_total", ["outcome"]), legend: "{{outcome}}" }],
    },
    {
      title: "Requests running and waiting",
      about: "Waiting ones are held in the control plane until workers have room.",
      unit: "short",
      queries: [
        { expr: over("sum", "margay_running_requests", ["model"]), legend: "{{model}} running" },
        { expr: over("sum", "margay_waiting_requests", ["model"]), legend: "{{model}} waiting" },
      ],
    },
    {
      title: "Time to first token",
      about: "From the parsed request to its first token, as the control plane sees it.",
      unit: "s",
      queries: quantiles((share) => quantile(share, "margay_time_to_first_token_seconds", ["model"])),
    },
    {
      title: "Time per further token",
      about: "After the first token, averaged over each request.",
      unit: "s",
      queries: quantiles((share) => quantile(share, "margay_time_per_output_token_seconds", ["model"])),
    },
    {
      title: "Whole life of a request",
      about: "From parsed to last token.",
      unit: "s",
      queries: quantiles((share) => quantile(share, "margay_request_seconds", ["model"])),
    },
    {
      title: "Wait in the queue",
      about: "Before a request was placed. It grows first when workers lack.",
      unit: "s",
      queries: quantiles((share) => quantile(share, "margay_queue_seconds", ["model"])),
    },
    {
      title: "Tokens a second",
      about: "Prompt tokens accepted and tokens delivered.",
      unit: "short",
      queries: [
        { expr: rate("margay_prompt_tokens_total", ["model"]), legend: "{{model}} in" },
        { expr: rate("margay_generated_tokens_total", ["model"]), legend: "{{model}} out" },
      ],
    },
    {
      title: "Attempts that failed and were made again",
      about: "By the failure's code. Clients notice nothing but time.",
      unit: "ops",
      queries: [{ expr: rate("margay_retries_total", ["code"]), legend: "{{code}}" }],
    },
    {
      title: "Tokens in a step",
      about: "How well the workers are filled, by role.",
      unit: "short",
      queries: [{ expr: mean("margay_batch_tokens", ["role"]), legend: "{{role}}" }],
    },
    {
      title: "Message bus",
      about: "Processes that are connected, and messages that came twice or too late: harmless, but a sign of trouble.",
      unit: "short",
      queries: [
        { expr: over("sum", "margay_bus_connected", []), legend: "connected" },
        { expr: rate("margay_duplicate_messages_total", ["kind"]), legend: "{{kind}} repeated" },
        { expr: rate("margay_streams_resumed_total", []), legend: "streams repaired" },
      ],
    },
  ],
};

const SCALING: Board = {
  name: "scaling",
  title: "scaling and cold starts",
  panels: [
    {
      title: "Ranks, by state",
      about: "Loading ones are on their way; lost ones fell silent.",
      unit: "short",
      stacked: true,
      queries: [{ expr: over("max", "margay_workers", ["role", "state"]), legend: "{{role}} {{state}}" }],
    },
    {
      title: "Workers wanted",
      about: "By the control plane that decides; `margay explain` says why.",
      unit: "short",
      queries: [{ expr: over("max", "margay_wanted_workers", ["model", "role"]), legend: "{{model}} {{role}}" }],
    },
    {
      title: "Decisions",
      about: "Changes of the number of workers that are wanted. Both ways at once, again and again, is flapping.",
      unit: "ops",
      queries: [
        { expr: rate("margay_scaling_decisions_total", ["role", "direction"]), legend: "{{role}} {{direction}}" },
      ],
    },
    {
      title: "Requests that wait",
      about: "What asks for workers.",
      unit: "short",
      queries: [{ expr: over("sum", "margay_waiting_requests", ["model"]), legend: "{{model}}" }],
    },
    {
      title: "Cold starts",
      about: "Workers started because a request waited while there was none.",
      unit: "ops",
      queries: [{ expr: rate("margay_cold_starts_total", []), legend: "cold starts" }],
    },
    {
      title: "Workers started again after a crash",
      about: "Should stay at zero.",
      unit: "ops",
      queries: [{ expr: rate("margay_worker_restarts_total", ["role"]), legend: "{{role}}" }],
    },
    {
      title: "Leaders",
      about: "Control planes that decide how many workers there are: one.",
      unit: "short",
      queries: [{ expr: over("sum", "margay_leader", []), legend: "leaders" }],
    },
    {
      title: "Longest waits",
      about: "99 of 100 waits were shorter: a cold start shows here.",
      unit: "s",
      queries: [{ expr: quantile(0.99, "margay_queue_seconds", ["model"]), legend: "{{model}}" }],
    },
  ],
};

/** Every dashboard. */
export const BOARDS: readonly Board[] = [OVERVIEW, PAIR_BOARD, MOE_BOARD, SCALING, TENANT_BOARD];

function quantiles(expr: (share: number) => string): readonly Query[] {
  return [0.5, 0.95, 0.99].map((share) => ({ expr: expr(share), legend: `{{model}} p${100 * share}` }));
}
