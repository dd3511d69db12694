import { z } from "zod";
import { GatewayId, ModelName } from "./ids.ts";
import { Role } from "./worker.ts";

/** What came and what it was, counted since a control plane began: differences tell rates and means. */
export const Traffic = z.object({
  arrived: z.int().min(0),
  promptTokens: z.int().min(0),
  /** Sum of the squares of prompt lengths. */
  promptSquares: z.number().min(0),
  /** First tokens that came, and those of them later than the goal. */
  firstTokens: z.int().min(0),
  lateTokens: z.int().min(0),
  /** Of requests that ended well: how many, their prompt tokens, those of them that nobody computed, and what they generated. */
  ended: z.int().min(0),
  endedPromptTokens: z.int().min(0),
  cachedTokens: z.int().min(0),
  outputTokens: z.int().min(0),
});
export type Traffic = z.infer<typeof Traffic>;

export const NO_TRAFFIC: Traffic = {
  ...{ arrived: 0, promptTokens: 0, promptSquares: 0, firstTokens: 0, lateTokens: 0 },
  ...{ ended: 0, endedPromptTokens: 0, cachedTokens: 0, outputTokens: 0 },
};

/** Tenants that a control plane tells of: those it served last. */
export const MOST_SERVED = 256;

/** What a control plane has served a tenant since it began, over the tenant's weight: differences tell whose turn it is. */
export const ServedShare = z.object({ tenant: z.string(), served: z.number().min(0) });
export type ServedShare = z.infer<typeof ServedShare>;

/** What the requests of one model at one control plane ask of its workers. */
export const ModelDemand = z.object({
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
  /** Prompt tokens of the requests without a place. */
  waitingTokens: z.int().min(0),
  traffic: Traffic,
  served: z.array(ServedShare).max(MOST_SERVED),
});
export type ModelDemand = z.infer<typeof ModelDemand>;

/** Told to the other control planes every GATEWAY_BEAT_MS and at once when somebody begins to wait or nobody does any more. */
export const GatewayDemand = z.object({
  kind: z.literal("gateway-demand"),
  gatewayId: GatewayId,
  models: z.array(ModelDemand),
});
export type GatewayDemand = z.infer<typeof GatewayDemand>;
