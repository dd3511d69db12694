import { z } from "zod";
import { ErrorCode } from "./errors.ts";
import { GatewayId, RequestId } from "./ids.ts";

/** What a tenant's limits are counted in. */
export const METERED = ["requests", "input", "output", "total"] as const;
export type Metered = (typeof METERED)[number];

/**
 * What all control planes together know of a tenant's limits: the state of its token buckets, and who may run how many
 * of its requests. What a control plane has taken out of a bucket to spend is not in it any more.
 */
export const TenantAccount = z.object({
  kind: z.literal("tenant-account"),
  /** When the levels were these, epoch milliseconds. */
  atMs: z.number(),
  /** Below 0: more was used than there was, and the time to come pays for it. */
  levels: z.object({ requests: z.number(), input: z.number(), output: z.number(), total: z.number() }),
  slots: z.array(z.object({ gatewayId: GatewayId, count: z.int().min(0), untilMs: z.number() })),
});
export type TenantAccount = z.infer<typeof TenantAccount>;

const count = z.int().min(0);
/** Pico-units of the currency, in decimal: more than a double holds exactly. */
const picos = z.string().regex(/^\d{1,40}$/);

/** What one request used up and costs: one entry per request, however it ended. */
export const LedgerEntry = z.object({
  kind: z.literal("ledger-entry"),
  requestId: RequestId,
  tenant: z.string(),
  model: z.string(),
  /** When it arrived, epoch milliseconds: its day is that of this time, in UTC. */
  arrivedMs: z.number(),
  outcome: z.union([z.literal("ok"), ErrorCode]),
  inputTokens: count,
  /** Of the input: nobody had to compute them. */
  cachedTokens: count,
  outputTokens: count,
  /** Of the output: thought. */
  reasoningTokens: count,
  prefillGpuMicros: count,
  decodeGpuMicros: count,
  costPicos: picos,
});
export type LedgerEntry = z.infer<typeof LedgerEntry>;

/** What a tenant used of one model on one day. */
export const UsageRow = z.object({
  tenant: z.string(),
  model: z.string(),
  requests: count,
  failedRequests: count,
  inputTokens: count,
  cachedTokens: count,
  outputTokens: count,
  reasoningTokens: count,
  prefillGpuMicros: count,
  decodeGpuMicros: count,
  costPicos: picos,
});
export type UsageRow = z.infer<typeof UsageRow>;

/** The sum of a day's entries up to number `through` of the ledger. */
export const UsageDay = z.object({
  kind: z.literal("usage-day"),
  through: count,
  rows: z.array(UsageRow),
});
export type UsageDay = z.infer<typeof UsageDay>;
