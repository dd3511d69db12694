import { z } from "zod";
import { ErrorCode } from "./errors.ts";
import { RankId } from "./ids.ts";
import { Reservation, SequenceHandle } from "./kv.ts";
import { FinishReason, Generation, Logprobs, RequestHead } from "./request.ts";
import { Tokens } from "./tokens.ts";
import { Refused } from "./worker.ts";

/** Control plane -> decode rank: keep a slot and pages for this request. Answered by `Reserved` or `Refused`. */
export const ReserveKv = z.object({
  kind: z.literal("reserve-kv"),
  head: RequestHead,
  generation: Generation,
  epoch: z.int().min(1),
  /** The reservation lapses then unless the request was started, epoch milliseconds. */
  deadlineMs: z.number(),
});
export type ReserveKv = z.infer<typeof ReserveKv>;

export const Reserved = z.object({ kind: z.literal("reserved"), reservation: Reservation });
export type Reserved = z.infer<typeof Reserved>;

/**
 * Control plane -> decode rank: go. With `pages` the rank waits (until `transferDeadlineMs`) for the last of them; without
 * it computes the prompt itself. `firstToken` follows the prompt; null: the rank chooses it, and for that computes the
 * prompt's last row again. Answered when decoding begins.
 */
export const StartDecode = z.object({
  kind: z.literal("start-decode"),
  head: RequestHead,
  handle: SequenceHandle,
  epoch: z.int().min(1),
  pages: z.boolean(),
  firstToken: z.int().min(0).nullable(),
  transferDeadlineMs: z.number(),
});
export type StartDecode = z.infer<typeof StartDecode>;

export const Started = z.object({
  kind: z.literal("started"),
  /** Pages and bytes received, and milliseconds from the first announcement to the last sealed page. */
  pages: z.int().min(0),
  bytes: z.int().min(0),
  transferMs: z.number().min(0),
});
export type Started = z.infer<typeof Started>;

/** The last word of a decode rank on a request. */
export const DecodeDone = z.object({
  /** null: ended by `error`. */
  finish: FinishReason.nullable(),
  error: ErrorCode.nullable(),
  /** Prompt tokens that were in the decode rank's own cache, and that it computed itself. */
  cachedTokens: z.int().min(0),
  computedTokens: z.int().min(0),
  /** Draft tokens that the model verified, and that became tokens which cost no step of their own. */
  verifiedDrafts: z.int().min(0),
  acceptedDrafts: z.int().min(0),
  decodeMs: z.number().min(0),
  /** Its share of the steps it had rows in, by rows, milliseconds: shares of all requests add up to the engine's time. */
  gpuMs: z.number().min(0),
});
export type DecodeDone = z.infer<typeof DecodeDone>;

/** Tokens of one request out of a step or a few fast ones. `seq` is the place of the first one among the request's generated tokens. */
export const TokenChunk = z.object({
  requestId: RequestHead.shape.requestId,
  attempt: z.int().min(0),
  seq: z.int().min(0),
  tokens: Tokens,
  logprobs: Logprobs.nullable(),
  done: DecodeDone.nullable(),
});
export type TokenChunk = z.infer<typeof TokenChunk>;

/** Decode rank -> gateway: all that a step, or a few fast ones, made for requests of this gateway. */
export const TokenBatch = z.object({
  kind: z.literal("token-batch"),
  rankId: RankId,
  epoch: z.int().min(1),
  chunks: z.array(TokenChunk),
});
export type TokenBatch = z.infer<typeof TokenBatch>;

/** Gateway -> decode rank: tokens below `seq` arrived and may be forgotten. */
export const TokenAcks = z.object({
  kind: z.literal("token-acks"),
  acks: z.array(z.object({ requestId: RequestHead.shape.requestId, attempt: z.int().min(0), seq: z.int().min(0) })),
});
export type TokenAcks = z.infer<typeof TokenAcks>;

/** Gateway -> decode rank after a gap or a silence: send again from `seq`. Answered by `Resumed` or `Refused`. */
export const ResumeStream = z.object({
  kind: z.literal("resume-stream"),
  head: RequestHead,
  seq: z.int().min(0),
});
export type ResumeStream = z.infer<typeof ResumeStream>;

/** The chunk holds everything generated from the asked `seq` on, and the end if it is reached. May be empty. */
export const Resumed = z.object({ kind: z.literal("resumed"), chunk: TokenChunk });
export type Resumed = z.infer<typeof Resumed>;

export const ReserveReply = z.discriminatedUnion("kind", [Reserved, Refused]);
export type ReserveReply = z.infer<typeof ReserveReply>;
export const StartReply = z.discriminatedUnion("kind", [Started, Refused]);
export type StartReply = z.infer<typeof StartReply>;
export const ResumeReply = z.discriminatedUnion("kind", [Resumed, Refused]);
export type ResumeReply = z.infer<typeof ResumeReply>;
