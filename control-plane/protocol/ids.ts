import { z } from "zod";

/**
 * Names of things, as branded strings: a `WorkerId` cannot be passed where a `GatewayId` is meant.
 *
 * Every id is made of `[A-Za-z0-9_-]` so that it may stand as one token of a NATS subject.
 */
const token = (limit: number) =>
  z
    .string()
    .regex(/^[A-Za-z0-9_-]+$/)
    .max(limit);

/** One client request, for its whole life, across attempts. Told to the client as `x-request-id`. */
export const RequestId = token(64).brand<"RequestId">();
export type RequestId = z.infer<typeof RequestId>;

/** One control-plane process. Tokens of a request travel to the gateway that owns it. */
export const GatewayId = token(64).brand<"GatewayId">();
export type GatewayId = z.infer<typeof GatewayId>;

/** A group of ranks that step together. */
export const WorkerId = token(64).brand<"WorkerId">();
export type WorkerId = z.infer<typeof WorkerId>;

/** One process of a worker, with its own KV pool and its own address on the bus. */
export const RankId = token(72).brand<"RankId">();
export type RankId = z.infer<typeof RankId>;

/** Name under which a model is served (`model` of the HTTP API). Not a subject token. */
export const ModelName = z.string().min(1).max(200).brand<"ModelName">();
export type ModelName = z.infer<typeof ModelName>;

/** The address of rank `rank` of a worker. */
export function rankIdOf(worker: WorkerId, rank: number): RankId {
  return `${worker}-r${rank}` as RankId;
}
