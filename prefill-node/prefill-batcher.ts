import { type StepPlan, sumPlans } from "#native";
import type { SequenceHandle } from "#protocol/kv.ts";

/** A prompt on the rank. */
export interface PromptRows {
  readonly handle: SequenceHandle;
  /** Rows that no settled step has computed. */
  readonly left: number;
}

/**
 * The next step of chunked prefill, empty when nothing is left to plan.
 *
 * `prompts` stand in order of arrival; `inFlight` are the plans queued and not settled. The oldest prompt gets at least
 * half of the `budget` (rows of one step), so that every prompt ends; the other half goes to those that are closest to
 * their end, so that a short prompt does not wait for a long one. What nobody else needs goes to the oldest.
 */
export function planPrefill(prompts: readonly PromptRows[], inFlight: readonly StepPlan[], budget: number): StepPlan {
  const flying = sumPlans(inFlight);
  const open = prompts
    .map(({ handle, left }, order) => ({ handle, order, left: left - flying(handle).rows, rows: 0 }))
    .filter((prompt) => prompt.left > 0);
  const oldest = open[0];
  if (oldest === undefined) return [];

  let rest = budget;
  const give = (prompt: (typeof open)[number], most: number) => {
    const rows = Math.min(prompt.left - prompt.rows, most, rest);
    prompt.rows += rows;
    rest -= rows;
  };
  give(oldest, Math.ceil(budget / 2));
  for (const prompt of open.slice(1).sort((a, b) => a.left - b.left || a.order - b.order)) give(prompt, rest);
  give(oldest, rest);

  return open.filter(({ rows }) => rows > 0).map(({ handle, rows }) => ({ handle, rows, reserve: 0 }));
}
