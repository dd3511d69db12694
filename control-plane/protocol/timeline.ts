import { z } from "zod";
import { RequestId } from "./ids.ts";

const milliseconds = z.number().min(0);

/** A rank that was chosen, and what was known of it then. */
export const RankChoice = z.object({
  rank: z.string(),
  /** Prompt tokens that it had in its cache when it was chosen. */
  cached_tokens: z.int(),
  requests: z.int(),
  max_requests: z.int(),
  /** Prompt tokens that waited on it. */
  pending_tokens: z.int(),
  /** Ranks of its role there were. */
  out_of: z.int(),
});

/** What became of a request. `at_ms` counts from when it came. */
export const TimelineResponse = z.object({
  id: z.string(),
  object: z.literal("request.timeline"),
  model: z.string(),
  /** Epoch seconds. */
  created: z.number(),
  /** `running`, `ok`, or the code of the error that ended it. */
  outcome: z.string(),
  trace_id: z.string().nullable(),
  prompt_tokens: z.int(),
  cached_tokens: z.int(),
  generated_tokens: z.int(),
  first_token_ms: milliseconds.nullable(),
  total_ms: milliseconds.nullable(),
  /** Placements that failed and were followed by another. */
  retries: z.int(),
  attempts: z.array(
    z.object({
      attempt: z.int(),
      outcome: z.string(),
      at_ms: milliseconds,
      /** null: its decode rank computed the prompt. */
      prefill: RankChoice.nullable(),
      decode: RankChoice.nullable(),
      phases: z.array(z.object({ phase: z.string(), at_ms: milliseconds, ms: milliseconds })),
      transfer: z.object({ pages: z.int(), bytes: z.int(), ms: milliseconds }).nullable(),
      generated_tokens: z.int(),
    }),
  ),
});
export type TimelineResponse = z.infer<typeof TimelineResponse>;

/** A control plane asks the one that may have served a request. Another tenant's request is as unknown as none. */
export const TimelineQuery = z.object({
  kind: z.literal("timeline-query"),
  requestId: RequestId,
  tenant: z.string(),
});
export type TimelineQuery = z.infer<typeof TimelineQuery>;

/** null: it is not among the latest requests there. */
export const TimelineReply = z.object({ kind: z.literal("timeline"), timeline: TimelineResponse.nullable() });
export type TimelineReply = z.infer<typeof TimelineReply>;

/** The latest requests, the latest first. */
export const RequestListResponse = z.object({
  object: z.literal("list"),
  data: z.array(
    z.object({
      id: z.string(),
      object: z.literal("request"),
      model: z.string(),
      /** Epoch seconds. */
      created: z.number(),
      /** `running`, `ok`, or the code of the error that ended it. */
      outcome: z.string(),
      prompt_tokens: z.int(),
      generated_tokens: z.int(),
      total_ms: milliseconds.nullable(),
      /** Placements that failed and were followed by another. */
      retries: z.int(),
    }),
  ),
});
export type RequestListResponse = z.infer<typeof RequestListResponse>;
