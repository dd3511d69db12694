import { z } from "zod";
import { GatewayId } from "./ids.ts";

/** What a tenant's limits are counted in. */
export const METERED = ["requests", "input", "output", "total"] as const;
export type Metered = (typeof METERED)[number];

/**
 * What all control planes together know of a tenant's limits: the state of its token buckets, and who may run how many
 * of its requests. What a control plane has taken out of a bucket to spend is not in it any more.
 */
export const TenantAccount = z.strictObject({
  kind: z.literal("tenant-account"),
  /** When the levels were these, epoch milliseconds. */
  atMs: z.number(),
  /** Below 0: more was used than there was, and the time to come pays for it. */
  levels: z.strictObject({ requests: z.number(), input: z.number(), output: z.number(), total: z.number() }),
  slots: z.array(z.strictObject({ gatewayId: GatewayId, count: z.int().min(0), untilMs: z.number() })),
});
export type TenantAccount = z.infer<typeof TenantAccount>;
