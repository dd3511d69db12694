import { z } from "zod";
import { ErrorCode } from "./errors.ts";
import { RankId } from "./ids.ts";
import { Reservation } from "./kv.ts";
import { FinishReason, Generation, Logprobs, RequestHead } from "./request.ts";
import { Done, Refused } from "./worker.ts";

/** Control plane -> prefill rank, answered at once by `PrefillAccepted` or `Refused`. */
export const PrefillWork = z.object({
  kind: z.literal("prefill-work"),
  head: RequestHead,
  generation: Generation,
  /** Where the pages go; null: a `PrefillTarget` will tell, and computing begins without it. */
  reservation: Reservation.nullable(),
  /** Epoch of the prefill rank the sender believes it talks to. */
  epoch: z.int().min(1),
  /** When the work is worthless, epoch milliseconds. */
  deadlineMs: z.number(),
});
export type PrefillWork = z.infer<typeof PrefillWork>;

/** Control plane -> prefill rank: where the pages of a prompt go that is being computed already. */
export const PrefillTarget = z.object({
  kind: z.literal("prefill-target"),
  head: RequestHead,
  reservation: Reservation,
  epoch: z.int().min(1),
});
export type PrefillTarget = z.infer<typeof PrefillTarget>;

export const PrefillAccepted = z.object({
  kind: z.literal("prefill-accepted"),
  /** Prompt tokens already in the prefill rank's own prefix cache. */
  cachedTokens: z.int().min(0),
});
export type PrefillAccepted = z.infer<typeof PrefillAccepted>;

/**
 * Prefill rank -> owner: the prompt is computed and its first token chosen. All pages are announced; the decode rank
 * has verified each one it sealed and knows by its own count when it has them all.
 */
export const PrefillDone = z.object({
  kind: z.literal("prefill-done"),
  head: RequestHead,
  rankId: RankId,
  epoch: z.int().min(1),
  /** Null: the decode rank chooses it, under a constraint that does not say how it may begin. */
  firstToken: z.int().min(0).nullable(),
  logprobs: Logprobs.nullable(),
  /** Set when the first token also ends the request. */
  finish: FinishReason.nullable(),
  /** Tokens taken from the prefill rank's prefix cache rather than computed. */
  cachedTokens: z.int().min(0),
  /** Waiting on the rank before the first step, then computing, milliseconds. */
  queueMs: z.number().min(0),
  computeMs: z.number().min(0),
  /** Its share of the steps it had rows in, by rows, milliseconds. */
  gpuMs: z.number().min(0),
});
export type PrefillDone = z.infer<typeof PrefillDone>;

/** Prefill rank -> owner: this attempt failed. Sent at once, so that the other leg never waits for a deadline. */
export const PrefillFailed = z.object({
  kind: z.literal("prefill-failed"),
  head: RequestHead,
  rankId: RankId,
  epoch: z.int().min(1),
  code: ErrorCode,
  detail: z.string().max(500),
});
export type PrefillFailed = z.infer<typeof PrefillFailed>;

/** Control plane -> either rank: stop; free what the request holds. Answered when nothing is held any more. */
export const Cancel = z.object({ kind: z.literal("cancel"), head: RequestHead });
export type Cancel = z.infer<typeof Cancel>;

/**
 * `known` is false when the rank holds nothing of this request (never had, or already ended). `gpuMs`: its share of steps
 * that no other word told.
 */
export const Cancelled = z.object({
  kind: z.literal("cancelled"),
  known: z.boolean(),
  gpuMs: z.number().min(0),
});
export type Cancelled = z.infer<typeof Cancelled>;

export const PrefillReply = z.discriminatedUnion("kind", [PrefillAccepted, Refused]);
export type PrefillReply = z.infer<typeof PrefillReply>;
export const TargetReply = z.discriminatedUnion("kind", [Done, Refused]);
export type TargetReply = z.infer<typeof TargetReply>;
export const CancelReply = z.discriminatedUnion("kind", [Cancelled, Refused]);
export type CancelReply = z.infer<typeof CancelReply>;
export const DrainReply = z.discriminatedUnion("kind", [Done, Refused]);
export type DrainReply = z.infer<typeof DrainReply>;
