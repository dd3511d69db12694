import { type PlanEntry, type StepPlan, sumPlans } from "#native";
import type { SequenceHandle } from "#protocol/kv.ts";
import { type Growing, growthOf, isDue, isStarving } from "./growth.ts";
import { FEWEST_STEPS } from "./step-pace.ts";

/** A sequence on the rank, after all settled steps. */
export interface DecodeRows extends Growing {
  readonly handle: SequenceHandle;
  /** Prompt rows this rank still has to compute itself; 0 when P computed them. */
  readonly promptLeft: number;
  /** A settled plan has put it into the engine's batch. */
  readonly running: boolean;
}

/** What a plan may use. */
export interface DecodeMeans {
  /** Rows of one step. */
  readonly budget: number;
  /** Most rows of prompts in one step. */
  readonly chunk: number;
  /** Steps of one planning round, and tokens drafted per step. */
  readonly steps: number;
  readonly drafts: number;
  /** Blocks that could be taken now. */
  readonly blocksAvailable: () => number;
}

export interface DecodePlan {
  readonly plan: StepPlan;
  /** Must give its blocks back, so that one before it can go on; null: nobody. */
  readonly preempt: SequenceHandle | null;
}

/**
 * What is to change next about the engine's batch; an empty plan when nothing is.
 *
 * `sequences` stand in order of entitlement: higher priority first, then the older. Everyone whose prompt is computed
 * joins the batch, where it decodes in every step, and is given blocks ahead of its growth, a round at a time. What the
 * batch leaves of the budget goes to prompts computed here; the step with the last rows of a prompt is the last one
 * before it joins. When blocks run out, the more entitled grow first and by less; when one is about to sit out, the least
 * entitled of all behind it is to be preempted. So whoever is first always goes on. `inFlight` are the plans queued and
 * not settled.
 */
export function planDecode(
  sequences: readonly DecodeRows[],
  inFlight: readonly StepPlan[],
  means: DecodeMeans,
): DecodePlan {
  const { budget, chunk, steps, drafts } = means;
  const flying = sumPlans(inFlight);
  const batch: { rows: DecodeRows; joined: boolean }[] = [];
  const prompts: { rows: DecodeRows; left: number }[] = [];
  for (const sequence of sequences) {
    const { rows: planned, reserve } = flying(sequence.handle);
    const rows = { ...sequence, capacity: Math.max(sequence.capacity, reserve) };
    const left = sequence.promptLeft - planned;
    // The last row of a prompt in the batch waits for a mask.
    if (left > 0 && !sequence.running) prompts.push({ rows, left });
    else batch.push({ rows, joined: sequence.running || reserve > 0 });
  }

  const { reserves, starving } = grow(
    batch.map(({ rows }) => rows),
    means,
  );
  const plan: PlanEntry[] = [];
  for (const [i, { rows, joined }] of batch.entries()) {
    const reserve = reserves[i]!;
    if (!joined || reserve > rows.capacity) plan.push({ handle: rows.handle, rows: 0, reserve });
  }
  let rest = Math.min(chunk, budget - batch.length);
  for (const { rows, left } of prompts) {
    if (rest <= 0) break;
    const taken = Math.min(left, rest);
    rest -= taken;
    plan.push({ handle: rows.handle, rows: taken, reserve: taken === left ? rows.capacity : 0 });
  }
  const last = sequences.at(-1);
  const preempt = starving !== null && last !== undefined && last.handle !== starving ? last.handle : null;
  return { plan, preempt };

  /** Tokens each of the batch is to have blocks for, and the first that finds none in time. */
  function grow(rows: readonly DecodeRows[], { blocksAvailable }: DecodeMeans) {
    const reserves = rows.map(({ capacity }) => capacity);
    let starving: SequenceHandle | null = null;
    if (!rows.some((one) => isDue(one, steps, drafts))) return { reserves, starving };
    let available = blocksAvailable();
    for (const [i, one] of rows.entries()) {
      const fitting = [steps, FEWEST_STEPS]
        .map((n) => growthOf(one, n, drafts))
        .find(({ blocks }) => blocks <= available);
      if (fitting !== undefined) {
        reserves[i] = fitting.reserve;
        available -= fitting.blocks;
      } else if (isStarving(one, drafts)) starving ??= one.handle;
      // Who is behind gets nothing that the one in front is short of.
      if (starving !== null) break;
    }
    return { reserves, starving };
  }
}
