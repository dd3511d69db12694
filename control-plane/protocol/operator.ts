import { z } from "zod";
import { GatewayId, ModelName, RankId, WorkerId } from "./ids.ts";
import { BlocksByState, Done, Refused, Role, Work, WorkerState } from "./worker.ts";

/** `margay status` asks, any control plane answers. */
export const StatusQuery = z.object({ kind: z.literal("status-query") });
export type StatusQuery = z.infer<typeof StatusQuery>;

export const RankStatus = z.object({
  workerId: WorkerId,
  rankId: RankId,
  rank: z.int(),
  ranks: z.int(),
  /** Epoch of its group and ranks in it; null: in none, or the only rank of its worker. */
  group: z.object({ epoch: z.int(), size: z.int(), mapVersion: z.int() }).nullable(),
  role: Role,
  state: z.enum([...WorkerState.options, "lost"]),
  model: ModelName,
  epoch: z.int(),
  pid: z.int(),
  healthUrl: z.string(),
  requests: z.int(),
  maxRequests: z.int(),
  blocksTotal: z.int(),
  blocksAvailable: z.int(),
  blocks: BlocksByState,
  kvBytesMoved: z.int(),
  pendingPrefillTokens: z.int(),
  work: Work,
  lastBeatMs: z.number(),
});
export type RankStatus = z.infer<typeof RankStatus>;

export const StatusReport = z.object({
  kind: z.literal("status-report"),
  gatewayId: GatewayId,
  upMs: z.number(),
  ranks: z.array(RankStatus),
  /** Per model: requests waiting for a worker, and being served, at all control planes together. */
  models: z.array(
    z.object({
      name: ModelName,
      waiting: z.int(),
      running: z.int(),
      wantedPrefill: z.int(),
      wantedDecode: z.int(),
    }),
  ),
});
export type StatusReport = z.infer<typeof StatusReport>;

/** `margay drain WORKER`. */
export const DrainWorker = z.object({
  kind: z.literal("drain-worker"),
  workerId: WorkerId,
  graceMs: z.number().min(0),
});
export type DrainWorker = z.infer<typeof DrainWorker>;

export const DrainWorkerReply = z.discriminatedUnion("kind", [Done, Refused]);
export type DrainWorkerReply = z.infer<typeof DrainWorkerReply>;
