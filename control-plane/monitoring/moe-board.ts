import type { Board } from "./board.ts";
import { over, rate } from "./promql.ts";

/** Experts, and the ranks that share them. */
export const MOE_BOARD: Board = {
  name: "experts",
  title: "experts and their ranks",
  panels: [
    {
      title: "Share of zero-computation experts",
      about: "Among what the router chose: the larger, the less each token costs.",
      unit: "percentunit",
      queries: [{ expr: over("avg", "margay_zero_expert_share", ["role"]), legend: "{{role}}" }],
    },
    {
      title: "Real experts per token",
      about: "That a row of a mixture layer chose, on average.",
      unit: "none",
      queries: [{ expr: over("avg", "margay_real_experts_per_token", ["role"]), legend: "{{role}}" }],
    },
    {
      title: "Load of experts, over their mean",
      about: "Lines at 1 mean even use. A busiest expert far above it asks for replicas.",
      unit: "none",
      queries: [
        { expr: over("max", "margay_expert_load_over_mean", ["role", "expert"]), legend: "{{role}} {{expert}}" },
      ],
    },
    {
      title: "Imbalance of ranks",
      about: "Load of the busiest rank over the mean, under the map before and the one after balancing.",
      unit: "none",
      queries: [{ expr: over("max", "margay_expert_imbalance", ["worker", "map"]), legend: "{{worker}} {{map}}" }],
    },
    {
      title: "Experts moved",
      about: "Taken over by a rank to even out the load.",
      unit: "ops",
      queries: [{ expr: rate("margay_expert_moves_total", ["role"]), legend: "{{role}}" }],
    },
    {
      title: "Bytes exchanged between ranks",
      about: "Rows for others' experts, and what came of them.",
      unit: "Bps",
      queries: [{ expr: rate("margay_exchange_bytes_total", ["role", "direction"]), legend: "{{role}} {{direction}}" }],
    },
    {
      title: "Seconds a second that steps stood still for other ranks",
      about: "What no compute hid, summed over ranks.",
      unit: "none",
      queries: [{ expr: rate("margay_exchange_exposed_seconds_total", ["role"]), legend: "{{role}}" }],
    },
    {
      title: "Seconds a second that a rank was ready before its last peer",
      about: "The rank with the lowest line is the one that the others wait for.",
      unit: "none",
      queries: [
        { expr: rate("margay_rank_skew_seconds_total", ["role", "instance"]), legend: "{{role}} {{instance}}" },
      ],
    },
    {
      title: "Groups formed",
      about: "A group is formed anew with every change of its ranks.",
      unit: "ops",
      queries: [{ expr: rate("margay_groups_formed_total", ["role", "outcome"]), legend: "{{role}} {{outcome}}" }],
    },
    {
      title: "Drafts",
      about: "Tokens a second that the draft layer proposed, the model verified, and that were right.",
      unit: "short",
      queries: [
        { expr: rate("margay_draft_tokens_total", ["role", "stage"], { role: "decode" }), legend: "{{stage}}" },
      ],
    },
  ],
};
