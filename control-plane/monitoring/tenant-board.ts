import type { Board } from "./board.ts";
import { over, rate } from "./promql.ts";

/** Tenants and money: told where keys are set. */
export const TENANT_BOARD: Board = {
  name: "tenants",
  title: "tenants and money",
  panels: [
    {
      title: "Requests, by tenant and how they ended",
      about: "limited and over_budget were refused by the tenant's own limits.",
      unit: "reqps",
      stacked: true,
      queries: [
        { expr: rate("margay_tenant_requests_total", ["tenant", "outcome"]), legend: "{{tenant}} {{outcome}}" },
      ],
    },
    {
      title: "Tokens a second",
      about: "Cached ones are part of the input, reasoning ones of the output.",
      unit: "short",
      queries: [{ expr: rate("margay_tenant_tokens_total", ["tenant", "kind"]), legend: "{{tenant}} {{kind}}" }],
    },
    {
      title: "Compute seconds a second",
      about: "Of ranks of each role: how many of them a tenant keeps busy.",
      unit: "none",
      queries: [{ expr: rate("margay_tenant_gpu_seconds_total", ["tenant", "role"]), legend: "{{tenant}} {{role}}" }],
    },
    {
      title: "Cost a second",
      about: "In the currency of the price list. `/v1/usage` has the exact sums.",
      unit: "none",
      queries: [{ expr: rate("margay_tenant_cost_total", ["tenant"]), legend: "{{tenant}}" }],
    },
    {
      title: "Ledger entries given up",
      about: "Should stay at zero: what they cost is in no bill.",
      unit: "ops",
      queries: [{ expr: rate("margay_ledger_lost_total", []), legend: "lost" }],
    },
    {
      title: "Keys file in use",
      about: "1 while the keys that hold are those of the file as it is, 0 while it cannot be used.",
      unit: "none",
      queries: [{ expr: over("min", "margay_keys_file_valid", ["instance"]), legend: "{{instance}}" }],
    },
  ],
};
