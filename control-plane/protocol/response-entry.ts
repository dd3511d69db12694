import { z } from "zod";
import { GatewayId, ModelName, RequestId } from "./ids.ts";
import { Generation } from "./request.ts";
import { Tokens } from "./tokens.ts";

/** What makes a response, whoever makes it. */
export const ResponseRecord = z.object({
  requestId: RequestId,
  model: ModelName,
  share: z.object({ tenant: z.string(), weight: z.number(), urgency: z.number() }),
  /** Of the key that asked; null: nobody asks for keys. */
  keyDigest: z.string().nullable().default(null),
  /** Epoch milliseconds. */
  deadlineMs: z.number(),
  generation: Generation,
  previous: z.string().nullable(),
  /** JSON, in the gateway's words: what the response says of its request, its input, and how its tokens are read. */
  head: z.string(),
  input: z.string(),
  reading: z.string(),
});
export type ResponseRecord = z.infer<typeof ResponseRecord>;

export const ResponseUsage = z.object({
  promptTokens: z.int(),
  cachedTokens: z.int(),
  completionTokens: z.int(),
});
export type ResponseUsage = z.infer<typeof ResponseUsage>;

/** How a response ended. */
export const ResponseEnd = z.object({
  status: z.enum(["completed", "failed", "incomplete", "cancelled"]),
  /** Unix seconds. */
  endedAt: z.int(),
  error: z.object({ code: z.enum(["server_error", "rate_limit_exceeded"]), message: z.string() }).nullable(),
  /** null: it was not told. */
  usage: ResponseUsage.nullable(),
});
export type ResponseEnd = z.infer<typeof ResponseEnd>;

/**
 * One entry of a stored response. Its entries in order are all there is of it: the events of its stream are a function of
 * them. The first has the record, the last of one that is over the end; one with neither tokens nor end says who goes on.
 */
export const ResponseEntry = z.object({
  /** Place among the response's entries, from 0. */
  number: z.int().min(0),
  /** Who makes the response from here on. */
  writer: GatewayId,
  record: ResponseRecord.nullable(),
  /** Generated since the last entry, and how many of them came at a time: events are cut there. */
  tokens: Tokens,
  sizes: Tokens,
  end: ResponseEnd.nullable(),
});
export type ResponseEntry = z.infer<typeof ResponseEntry>;
