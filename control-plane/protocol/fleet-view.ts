import { z } from "zod";
import { RoleOutlook } from "./scaling.ts";
import { BlocksByState, Role } from "./worker.ts";

const milliseconds = z.number().min(0);
const whole = z.int().min(0);

/** One rank. Counters rise from its start on: differences of two answers tell rates. */
export const FleetRank = z.strictObject({
  rank: z.string(),
  worker: z.string(),
  /** Its place among the ranks of its worker, and how many those are. */
  place: whole,
  places: whole,
  role: Role,
  state: z.string(),
  model: z.string(),
  epoch: whole,
  requests: whole,
  max_requests: whole,
  /** Prompt tokens admitted and not yet computed. */
  pending_prompt_tokens: whole,
  /** Blocks of 64 tokens by state; they add up to the pool. */
  pages: BlocksByState,
  /** KV bytes sent (prefill) or received (decode). */
  kv_bytes: whole,
  steps: whole,
  busy_ms: milliseconds,
  prompt_tokens: whole,
  /** Sequences that decoded, summed over steps, and the tokens they gained. */
  stream_steps: whole,
  generated_tokens: whole,
  /** Since it was last heard of. */
  silent_ms: milliseconds,
});

/** `GET /v1/fleet`: what there is, what waits, and why there is as much as there is. */
export const FleetResponse = z.strictObject({
  object: z.literal("fleet"),
  gateway: z.string(),
  up_ms: milliseconds,
  models: z.array(
    z.strictObject({
      name: z.string(),
      waiting: whole,
      running: whole,
      roles: z.array(
        z.strictObject({
          role: Role,
          wanted: whole,
          started: whole,
          ready: whole,
          phase: RoleOutlook.shape.phase,
          /** Of a usual start, how much has passed and what is left, for the next worker; null: not known. */
          share: RoleOutlook.shape.share,
          left_ms: RoleOutlook.shape.leftMs,
        }),
      ),
      /** Why workers do not come; null: nothing keeps them. */
      failure: z.string().nullable(),
      /** The latest changes of the number of workers, the latest first. */
      decisions: z.array(
        z.strictObject({ ago_ms: milliseconds, role: Role, from: whole, to: whole, reason: z.string() }),
      ),
    }),
  ),
  /** How many there are; at most 1000 of them are told. */
  ranks_total: whole,
  ranks: z.array(FleetRank),
});
export type FleetResponse = z.infer<typeof FleetResponse>;
export type FleetRank = z.infer<typeof FleetRank>;
