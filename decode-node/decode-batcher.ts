import { type PlanEntry, type StepPlan, sumPlans } from "#native";
import type { SequenceHandle } from "#protocol/kv.ts";

/** A sequence on the rank, after all settled steps. */
export interface DecodeRows {
  readonly handle: SequenceHandle;
  /** Prompt rows this rank still has to compute itself; 0 when P computed them. */
  readonly promptLeft: number;
  /** A settled plan has put it into the engine's batch. */
  readonly running: boolean;
  /** Tokens it may grow to. */
  readonly reserve: number;
}

/**
 * What is to change next about the engine's batch, empty when nothing is.
 *
 * Every sequence whose prompt is computed joins the batch, where it decodes in every step. What the batch leaves of the
 * `budget` (rows of one step) goes to prompts computed here, in the order of `sequences`; the step with the last rows of
 * a prompt is the last one before it joins. `inFlight` are the plans queued and not settled.
 */
export function planDecode(sequences: readonly DecodeRows[], inFlight: readonly StepPlan[], budget: number): StepPlan {
  const flying = sumPlans(inFlight);
  const plan: PlanEntry[] = [];
  const prompts: { readonly sequence: DecodeRows; readonly left: number }[] = [];
  let rest = budget;
  for (const sequence of sequences) {
    const { handle, promptLeft, running, reserve } = sequence;
    const planned = flying(handle);
    const left = promptLeft - planned.rows;
    if (left > 0) prompts.push({ sequence, left });
    else {
      rest--;
      if (!running && planned.reserve === 0) plan.push({ handle, rows: 0, reserve });
    }
  }
  for (const { sequence, left } of prompts) {
    if (rest <= 0) break;
    const rows = Math.min(left, rest);
    rest -= rows;
    plan.push({ handle: sequence.handle, rows, reserve: rows === left ? sequence.reserve : 0 });
  }
  return plan;
}
