import type { DecodeDone } from "#protocol/decode.ts";

/** What steps did for one request, as its last word tells. */
export type WorkDone = Pick<DecodeDone, "computedTokens" | "verifiedDrafts" | "acceptedDrafts">;

export const NO_WORK: WorkDone = { computedTokens: 0, verifiedDrafts: 0, acceptedDrafts: 0 };

/**
 * With one more step: `rows` were computed and `tokens` came of it. Rows of a prompt are work of its own; of the rows of
 * a decode step all but the first verified drafts, and of its tokens all but the first were such drafts.
 */
export function afterStep(work: WorkDone, prompt: boolean, rows: number, tokens: number): WorkDone {
  if (prompt) return { ...work, computedTokens: work.computedTokens + rows };
  if (rows < 2) return work;
  return {
    ...work,
    verifiedDrafts: work.verifiedDrafts + rows - 1,
    acceptedDrafts: work.acceptedDrafts + Math.max(0, tokens - 1),
  };
}
