import { z } from "zod";
import { Role } from "./worker.ts";

/**
 * How far the workers of a role are that are on their way, by the last of them:
 * scheduling (no place to run yet) -> loading (its process runs) -> joining (heard of, not ready yet); ready: none is.
 */
export const StartPhase = z.enum(["scheduling", "loading", "joining", "ready"]);
export type StartPhase = z.infer<typeof StartPhase>;

/** What a request of a model may expect of the workers of one role. */
export const RoleOutlook = z.strictObject({
  role: Role,
  /** Workers asked for, those of them that have a process, and those that take requests. */
  wanted: z.int().min(0),
  started: z.int().min(0),
  ready: z.int().min(0),
  phase: StartPhase,
  /** Of a usual start, how much has passed and what is left, for the next worker; null: no start was seen yet. */
  share: z.number().min(0).max(1).nullable(),
  leftMs: z.number().min(0).nullable(),
});
export type RoleOutlook = z.infer<typeof RoleOutlook>;
