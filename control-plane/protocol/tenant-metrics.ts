import { TEXT } from "./metric-spec.ts";
import { Role } from "./worker.ts";

/** Metrics of keys, tenants and the ledger: part of `METRICS`. Tenants beyond the first hundreds are "others". */
export const TENANT_METRICS = {
  margay_keys_file_valid: {
    type: "gauge",
    help: "1 while the keys that hold are those of the keys file as it is; 0 while the file is not usable and those before it hold.",
    unit: "boolean",
    labels: {},
  },
  margay_keys_file_reloads_total: {
    type: "counter",
    help: "Changes of the keys file that were read, by whether they could be used.",
    unit: "events",
    labels: { outcome: ["ok", "failed"] },
  },
  margay_ledger_lost_total: {
    type: "counter",
    help: "Requests whose ledger entry was given up: the bus was away and too many waited for it, or it was not to be written.",
    unit: "requests",
    labels: {},
  },
  margay_tenant_requests_total: {
    type: "counter",
    help: "Requests of a tenant that used something up, and those that its limits or its budget refused.",
    unit: "requests",
    labels: { tenant: TEXT, outcome: ["ok", "failed", "limited", "over_budget"] },
  },
  margay_tenant_tokens_total: {
    type: "counter",
    help: "Tokens of a tenant's requests; cached ones are part of the input, reasoning ones of the output.",
    unit: "tokens",
    labels: { tenant: TEXT, kind: ["input", "cached", "output", "reasoning"] },
  },
  margay_tenant_gpu_seconds_total: {
    type: "counter",
    help: "Compute time of a tenant's requests on ranks of a role.",
    unit: "seconds",
    labels: { tenant: TEXT, role: Role.options },
  },
  margay_tenant_cost_total: {
    type: "counter",
    help: "What a tenant's requests cost, in the currency of the price list; the ledger has it exactly.",
    unit: "currency",
    labels: { tenant: TEXT },
  },
} as const;
