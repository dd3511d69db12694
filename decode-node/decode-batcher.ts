import { indexPlan } from "#native";
import type { SequenceHandle } from "#protocol/kv.ts";

/** A sequence on the rank, after all settled steps. */
export interface DecodeRows {
  readonly handle: SequenceHandle;
  /** Prompt rows this rank still has to compute itself; 0 when P computed them. */
  readonly promptLeft: number;
  /** Tokens it may still generate. */
  readonly tokensLeft: number;
  /** Number of the last settled step that served it, -1 for none. */
  readonly lastStep: number;
}

/**
 * The next step of continuous batching, or null when nothing is left to plan.
 *
 * Every sequence that decodes gets one row, the longest unserved ones first should the `budget` (rows of one step) be
 * smaller than the batch. What is left of the budget goes to prompts computed here, in the order of `sequences`.
 * `inFlight` are the steps queued and not settled: a token that one of them is about to produce may be built upon.
 */
export function planDecode(
  sequences: readonly DecodeRows[],
  inFlight: readonly Int32Array[],
  budget: number,
): Int32Array | null {
  const flying = inFlight.map(indexPlan);
  const projected = sequences.map((sequence) => project(sequence, flying));
  const decoding = projected.filter((sequence) => sequence.promptLeft === 0 && sequence.tokensLeft > 0);
  if (decoding.length > budget) decoding.sort((a, b) => a.served - b.served || b.tokensLeft - a.tokensLeft);
  const plan: number[] = [];
  for (const { handle } of decoding.slice(0, budget)) plan.push(handle.slot, handle.generation, 1);

  let rest = budget - Math.min(decoding.length, budget);
  for (const { handle, promptLeft } of projected) {
    if (rest === 0) break;
    if (promptLeft === 0) continue;
    const rows = Math.min(promptLeft, rest);
    plan.push(handle.slot, handle.generation, rows);
    rest -= rows;
  }
  return plan.length === 0 ? null : Int32Array.from(plan);
}

/** The sequence as it will be when everything in flight has settled. */
function project(sequence: DecodeRows, flying: readonly ReturnType<typeof indexPlan>[]) {
  let { promptLeft, tokensLeft, lastStep: served } = sequence;
  for (const [age, rowsOf] of flying.entries()) {
    const rows = rowsOf(sequence.handle);
    if (rows === 0) continue;
    served = Number.MAX_SAFE_INTEGER - flying.length + age;
    // The step that computes the last prompt row produces a token, as every decode step does.
    promptLeft -= Math.min(promptLeft, rows);
    if (promptLeft === 0) tokensLeft--;
  }
  return { handle: sequence.handle, promptLeft, tokensLeft, served };
}
