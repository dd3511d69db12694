import { indexPlan } from "#native";
import type { SequenceHandle } from "#protocol/kv.ts";

/** A prompt on the rank. */
export interface PromptRows {
  readonly handle: SequenceHandle;
  /** Rows that no settled step has computed. */
  readonly left: number;
}

/**
 * The next step of chunked prefill, or null when nothing is left to plan.
 *
 * `prompts` stand in order of arrival; `inFlight` are the steps queued and not settled. The oldest prompt gets at least
 * half of the `budget` (rows of one step), so that every prompt ends; the other half goes to those that are closest to
 * their end, so that a short prompt does not wait for a long one. What nobody else needs goes to the oldest.
 */
export function planPrefill(
  prompts: readonly PromptRows[],
  inFlight: readonly Int32Array[],
  budget: number,
): Int32Array | null {
  const flying = inFlight.map(indexPlan);
  const unplanned = (handle: SequenceHandle, left: number) => flying.reduce((rest, rows) => rest - rows(handle), left);
  const open = prompts
    .map(({ handle, left }, order) => ({ handle, order, left: unplanned(handle, left), rows: 0 }))
    .filter((prompt) => prompt.left > 0);
  const oldest = open[0];
  if (oldest === undefined) return null;

  let rest = budget;
  const give = (prompt: (typeof open)[number], most: number) => {
    const rows = Math.min(prompt.left - prompt.rows, most, rest);
    prompt.rows += rows;
    rest -= rows;
  };
  give(oldest, Math.ceil(budget / 2));
  for (const prompt of open.slice(1).sort((a, b) => a.left - b.left || a.order - b.order)) give(prompt, rest);
  give(oldest, rest);

  return Int32Array.from(
    open.filter((prompt) => prompt.rows > 0).flatMap(({ handle, rows }) => [handle.slot, handle.generation, rows]),
  );
}
