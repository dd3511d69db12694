import type { DecodeDone } from "#protocol/decode.ts";

/** What steps did for one request, as its last word tells. */
export type WorkDone = Pick<DecodeDone, "computedTokens" | "verifiedDrafts" | "acceptedDrafts" | "gpuMs">;

export const NO_WORK: WorkDone = { computedTokens: 0, verifiedDrafts: 0, acceptedDrafts: 0, gpuMs: 0 };

/** What a step did for one sequence. */
export interface StepShare {
  readonly prompt: boolean;
  readonly rows: number;
  readonly tokens: number;
  /** Of the step's time, by rows. */
  readonly ms: number;
}

/**
 * With one more step. Rows of a prompt are work of its own; of the rows of a decode step all but the first verified drafts,
 * and of its tokens all but the first were such drafts.
 */
export function afterStep(work: WorkDone, { prompt, rows, tokens, ms }: StepShare): WorkDone {
  const gpuMs = work.gpuMs + ms;
  if (prompt) return { ...work, gpuMs, computedTokens: work.computedTokens + rows };
  if (rows < 2) return { ...work, gpuMs };
  return {
    ...work,
    gpuMs,
    verifiedDrafts: work.verifiedDrafts + rows - 1,
    acceptedDrafts: work.acceptedDrafts + Math.max(0, tokens - 1),
  };
}
