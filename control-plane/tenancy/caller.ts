import { NO_LIMITS, type ServiceClass, type Tenant } from "./key-file.ts";

/** Who sent a request. */
export interface Caller {
  readonly tenant: Tenant;
  /** null: nobody asks for keys here. */
  readonly keyDigest: string | null;
  readonly admin: boolean;
  /** What it may use; null: everything. */
  readonly models: ReadonlySet<string> | null;
}

/** Everybody, where no keys are set. */
export const ANYBODY: Caller = {
  tenant: { name: "local", organisation: null, models: null, weight: 1, priority: "high", limits: NO_LIMITS },
  keyDigest: null,
  admin: true,
  models: null,
};

/** Whether the caller may use a model. */
export function mayUse(caller: Caller, model: string): boolean {
  return (caller.tenant.models?.has(model) ?? true) && (caller.models?.has(model) ?? true);
}

const URGENCY: Readonly<Record<ServiceClass, number>> = { high: 1, normal: 0, low: -1 };
const TIERS: Readonly<Record<string, ServiceClass>> = { priority: "high", flex: "low", batch: "low" };

/** How urgent a request is: what its `service_tier` asks for, as far as its tenant may. 1, 0 or -1. */
export function urgencyOf(caller: Caller, serviceTier: string | null): number {
  const asked = URGENCY[TIERS[serviceTier ?? ""] ?? "normal"];
  return Math.min(asked, URGENCY[caller.tenant.priority]);
}
