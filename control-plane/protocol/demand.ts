import { z } from "zod";
import { GatewayId, ModelName } from "./ids.ts";
import { Role } from "./worker.ts";

/** What the requests of one model at one control plane ask of its workers. */
export const ModelDemand = z.strictObject({
  model: ModelName,
  /** Requests without a place, and how long the first of them has waited. */
  waiting: z.int().min(0),
  oldestWaitMs: z.number().min(0),
  /** The role the first of them waits for; null while that is not known. */
  missing: Role.nullable(),
  /** Requests between their beginning and their end, the waiting ones included. */
  running: z.int().min(0),
  /** Since the last request began or ended; null: there was none yet. */
  idleMs: z.number().min(0).nullable(),
});
export type ModelDemand = z.infer<typeof ModelDemand>;

/** Told to the other control planes every GATEWAY_BEAT_MS and at once when somebody begins to wait. */
export const GatewayDemand = z.strictObject({
  kind: z.literal("gateway-demand"),
  gatewayId: GatewayId,
  models: z.array(ModelDemand),
});
export type GatewayDemand = z.infer<typeof GatewayDemand>;
