import { z } from "zod";
import { RankId } from "./ids.ts";

/** Tokens per KV block; also rows per page (`spec/longcat-flash.md` section 3.4). */
export const BLOCK_TOKENS = 64;
/** Bytes of one block hash. */
export const BLOCK_HASH_BYTES = 16;

/** Raw bytes. Travels binary. */
export const Bytes = z.custom<Uint8Array>((value) => value instanceof Uint8Array, "must be a Uint8Array");

/**
 * A sequence in a rank's engine: slot and generation. Native bumps the generation whenever a slot is given back, so a
 * late user of an old handle is refused, never obeyed.
 */
export const SequenceHandle = z.object({ slot: z.int().min(0), generation: z.int().min(1) });
export type SequenceHandle = z.infer<typeof SequenceHandle>;

/** Where a decode rank takes KV announcements. `sharedMemory` names the host, so that equal names may share memory. */
export const KvEndpoint = z.object({
  host: z.string().min(1),
  port: z.int().min(1).max(65535),
  /** Boot id and IPC namespace of the host; two ranks with the same value can map each other's pools. */
  hostKey: z.string().min(1).max(200),
});
export type KvEndpoint = z.infer<typeof KvEndpoint>;

/** A decode rank's promise to receive one request's KV, valid until `deadlineMs` (epoch milliseconds). */
export const Reservation = z.object({
  rankId: RankId,
  epoch: z.int().min(1),
  handle: SequenceHandle,
  endpoint: KvEndpoint,
  /** Leading prompt tokens whose pages the decode rank already holds: fewer than the prompt has. */
  cachedTokens: z.int().min(0),
  deadlineMs: z.number(),
});
export type Reservation = z.infer<typeof Reservation>;

/** Concatenated block hashes, BLOCK_HASH_BYTES each. */
const KvChange = z.object({ stored: Bytes, removed: Bytes });
export type KvChange = z.infer<typeof KvChange>;

/** Changes of a rank's prefix cache, sent after they are visible (B6). `seq` counts messages of one epoch from 0. */
export const KvEvents = z.object({
  kind: z.literal("kv-events"),
  rankId: RankId,
  epoch: z.int().min(1),
  seq: z.int().min(0),
  ...KvChange.shape,
});
export type KvEvents = z.infer<typeof KvEvents>;

/**
 * Asks a rank for what was missed of its `KvEvents`: all after number `seq` of `epoch` (-1: nothing is known). Answered by
 * `KvReplay`, or by `KvSnapshot` where the rank does not keep them any more or is in another epoch.
 */
export const KvMissed = z.object({ kind: z.literal("kv-missed"), epoch: z.int().min(1), seq: z.int().min(-1) });
export type KvMissed = z.infer<typeof KvMissed>;

/** Answer: the changes told by events `seq`, `seq` + 1 and so on, to the last one there was. */
export const KvReplay = z.object({
  kind: z.literal("kv-replay"),
  rankId: RankId,
  epoch: z.int().min(1),
  seq: z.int().min(0),
  changes: z.array(KvChange),
});
export type KvReplay = z.infer<typeof KvReplay>;

/** Answer: all hashes in the prefix cache, the state after the event with number `seq` (-1: before the first). */
export const KvSnapshot = z.object({
  kind: z.literal("kv-snapshot"),
  rankId: RankId,
  epoch: z.int().min(1),
  seq: z.int().min(-1),
  hashes: Bytes,
});
export type KvSnapshot = z.infer<typeof KvSnapshot>;

export const KvMissedReply = z.discriminatedUnion("kind", [KvReplay, KvSnapshot]);
export type KvMissedReply = z.infer<typeof KvMissedReply>;

/** Where cached blocks lie: in the pool, or evicted from it into a second tier. */
export const CACHE_TIERS = ["pool", "second"] as const;
export type CacheTier = (typeof CACHE_TIERS)[number];

/** Of one tier of the prefix cache: `bytes` are held now for later, the others counted since the start. */
export interface CacheCounters {
  /** Given tokens whose rows it had, and those whose rows it was asked for in vain. */
  readonly hitTokens: number;
  readonly missedTokens: number;
  readonly evictedBlocks: number;
  /** Came back damaged. */
  readonly refusedBlocks: number;
  readonly bytes: number;
}
