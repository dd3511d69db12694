import { z } from "zod";
import { ExpertMap } from "./expert-map.ts";
import { RankId } from "./ids.ts";
import { Bytes } from "./kv.ts";
import { ExchangeEndpoint } from "./membership.ts";
import { Done, Refused } from "./worker.ts";

/** One rank of a group that forms. */
export const GroupMember = z.object({
  /** Its number among the worker's ranks. */
  rank: z.int().min(0),
  rankId: RankId,
  endpoint: ExchangeEndpoint,
});
export type GroupMember = z.infer<typeof GroupMember>;

/**
 * Control plane -> rank: step with these, and with nobody else. Ends the group the rank is in. An order with an epoch not
 * above that of the last one is refused as `stale_epoch`. Answered with `Done` when all members have joined natively.
 */
export const JoinGroup = z.object({
  kind: z.literal("join-group"),
  /** Epoch of the rank that is meant. */
  rankEpoch: z.int().min(1),
  groupEpoch: z.int().min(1),
  /** In rising order of `rank`; the addressed rank is one of them. */
  members: z.array(GroupMember).min(1),
  /** By which its members know each other: of this group alone, and told to nobody else. */
  secret: z.string().min(16).max(256),
  map: ExpertMap,
});
export type JoinGroup = z.infer<typeof JoinGroup>;

/** Control plane -> rank: have the weights of this map at hand. Steps go on meanwhile. `Done` when they are there. */
export const PrepareExperts = z.object({
  kind: z.literal("prepare-experts"),
  groupEpoch: z.int().min(1),
  map: ExpertMap,
});
export type PrepareExperts = z.infer<typeof PrepareExperts>;

/** Control plane -> rank: use the prepared map from the first step on that every member has been told so. */
export const SwitchExperts = z.object({
  kind: z.literal("switch-experts"),
  groupEpoch: z.int().min(1),
  version: z.int().min(0),
});
export type SwitchExperts = z.infer<typeof SwitchExperts>;

/** Control plane -> rank: how often did your rows choose each expert, and who holds them? Answered by `ExpertLoads`. */
export const ExpertLoadsQuery = z.object({
  kind: z.literal("expert-loads-query"),
  groupEpoch: z.int().min(1),
});
export type ExpertLoadsQuery = z.infer<typeof ExpertLoadsQuery>;

/**
 * Per real expert, as little-endian doubles: choices of this rank's own rows over all layers since it started. `map` is the
 * one that it was last told to use.
 */
export const ExpertLoads = z.object({ kind: z.literal("expert-loads"), loads: Bytes, map: ExpertMap });
export type ExpertLoads = z.infer<typeof ExpertLoads>;

export const GroupOrder = z.discriminatedUnion("kind", [JoinGroup, PrepareExperts, SwitchExperts, ExpertLoadsQuery]);
export type GroupOrder = z.infer<typeof GroupOrder>;
export const GroupReply = z.discriminatedUnion("kind", [Done, ExpertLoads, Refused]);
export type GroupReply = z.infer<typeof GroupReply>;

/** `ExpertLoads.loads` as numbers. */
export function unpackLoads(loads: Uint8Array): readonly number[] {
  const view = new DataView(loads.buffer, loads.byteOffset, loads.byteLength);
  return Array.from({ length: Math.floor(loads.byteLength / 8) }, (_, expert) => view.getFloat64(8 * expert, true));
}

/** The other way round. */
export function packLoads(counts: Float64Array): Uint8Array {
  const loads = new Uint8Array(8 * counts.length);
  const view = new DataView(loads.buffer);
  for (const [expert, count] of counts.entries()) view.setFloat64(8 * expert, count, true);
  return loads;
}
