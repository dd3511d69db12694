import { z } from "zod";
import { GatewayId } from "./ids.ts";

/** Where the requests of a batch go. */
export const BATCH_ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/responses"] as const;

/** What makes a batch, whoever works on it. */
export const BatchRecord = z.object({
  tenant: z.string(),
  /** Of the key that asked; null: nobody asks for keys. */
  keyDigest: z.string().nullable(),
  endpoint: z.enum(BATCH_ENDPOINTS),
  inputFile: z.string(),
  /** Names of the files that its answers go to; of lines that were answered, and of those that were not. */
  outputFile: z.string(),
  errorFile: z.string(),
  completionWindow: z.string(),
  metadata: z.record(z.string(), z.string()).nullable(),
  /** Unix seconds. */
  expiresAt: z.int(),
  outputsExpireAt: z.int(),
});
export type BatchRecord = z.infer<typeof BatchRecord>;

/** What is wrong with the input as a whole. */
export const BatchFault = z.object({
  code: z.string(),
  message: z.string(),
  param: z.string().nullable(),
  /** Counted from 1. */
  line: z.int().nullable(),
});
export type BatchFault = z.infer<typeof BatchFault>;

/** What happened to a batch. */
export const BatchStep = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("created"), record: BatchRecord }),
  /** The writer works on it from here on. */
  z.object({ kind: z.literal("claimed") }),
  /** The writer does not any more. */
  z.object({ kind: z.literal("left") }),
  z.object({ kind: z.literal("begun"), total: z.int().min(0) }),
  z.object({ kind: z.literal("cancelling") }),
  z.object({ kind: z.literal("finalizing") }),
  z.object({
    kind: z.literal("ended"),
    status: z.enum(["completed", "failed", "expired", "cancelled"]),
    faults: z.array(BatchFault),
    /** Lines that went well, and that did not. */
    completed: z.int().min(0),
    failed: z.int().min(0),
  }),
]);
export type BatchStep = z.infer<typeof BatchStep>;

/** One entry of a batch's log. Its entries in order, and the files, are all there is of it. */
export const BatchEntry = z.object({
  /** Unix seconds. */
  at: z.int(),
  writer: GatewayId,
  step: BatchStep,
});
export type BatchEntry = z.infer<typeof BatchEntry>;
