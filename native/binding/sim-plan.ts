import { BLOCK_TOKENS, type SequenceHandle } from "#protocol/kv.ts";
import type { SimPool } from "./sim-pool.ts";
import { type SimSequence, simFailure, tokenLimit } from "./sim-sequence.ts";
import { FINISH } from "./step-entries.ts";
import { type PlanEntry, type StepPlan, sumPlans } from "./step-plan.ts";

/** What a plan is judged by. */
export interface SimPlanState {
  readonly pool: SimPool;
  readonly maxStepTokens: number;
  readonly contextLength: number;
  readonly sequences: readonly (SimSequence | null)[];
  /** Queued before it, the running one included. */
  readonly queued: readonly StepPlan[];
  /** Throws `stale_handle`. */
  readonly require: (handle: SequenceHandle) => SimSequence;
}

/** Takes a plan as native does: throws, or takes blocks for those who are to grow and notes who will be in the batch. */
export function takePlan(plan: StepPlan, state: SimPlanState): void {
  const planned = sumPlans(state.queued);
  const seen = new Set<number>();
  let rows = 0;
  let batch = state.sequences.filter((sequence) => sequence?.willRun).length;
  for (const entry of plan) {
    const sequence = state.require(entry.handle);
    const { slot } = entry.handle;
    if (!sequence.runnable) throw simFailure("bad_state", `slot ${slot} waits for pages`);
    if (seen.has(slot)) throw simFailure("bad_argument", `slot ${slot} is planned twice`);
    seen.add(slot);
    if (sequence.finish !== FINISH.none) continue;
    judge(entry, sequence, planned(entry.handle).rows);
    rows += entry.rows;
    if (entry.reserve > 0) {
      if (!sequence.willRun) batch++;
      if (entry.rows > 0) rows--;
    } else if (entry.rows === 0 && sequence.willRun) batch--;
  }
  if (plan.length === 0 || rows + batch > state.maxStepTokens) {
    throw simFailure("bad_argument", `${rows} rows and a batch of ${batch} in one step`);
  }
  reserve(plan, state);
}

function judge({ handle, rows, reserve }: PlanEntry, sequence: SimSequence, planned: number): void {
  const { slot } = handle;
  if (rows < 0 || reserve < 0) throw simFailure("bad_argument", `slot ${slot} has a negative number of rows`);
  if (rows > 0 && sequence.willRun) throw simFailure("bad_state", `slot ${slot} is in the batch`);
  const length = sequence.length + planned;
  const known =
    sequence.tokens.length +
    (planned > 0 && length >= sequence.tokens.length ? length - sequence.tokens.length + 1 : 0);
  if (rows > Math.min(known, sequence.capacity) - length) {
    throw simFailure("bad_argument", `slot ${slot} has not ${rows} rows to compute`);
  }
  // The last given row may wait in the batch, for the mask of the token that it gives.
  const needed = sequence.spec.generation.tokens.length - (sequence.mask === null ? 0 : 1);
  if (reserve > 0 && length + rows < needed) {
    throw simFailure("bad_argument", `slot ${slot} cannot decode before its given tokens are computed`);
  }
}

function reserve(plan: StepPlan, { pool, contextLength, require }: SimPlanState): void {
  const grown = plan
    .map(({ handle, reserve }) => ({ sequence: require(handle), reserve }))
    .filter(({ sequence }) => sequence.finish === FINISH.none)
    .map(({ sequence, reserve }) => {
      const capacity = Math.max(sequence.capacity, Math.min(reserve, tokenLimit(sequence, contextLength)));
      return { sequence, capacity, blocks: Math.ceil(capacity / BLOCK_TOKENS) };
    });
  const more = grown.reduce((sum, { sequence, blocks }) => sum + blocks - sequence.lease.blocks.length, 0);
  if (more > pool.available) throw simFailure("no_blocks", `${more} blocks needed to grow`);
  for (const { sequence, capacity, blocks } of grown) {
    pool.grow(sequence.lease, blocks);
    sequence.capacity = capacity;
  }
  for (const { handle, rows, reserve } of plan) {
    const sequence = require(handle);
    if (sequence.finish !== FINISH.none) continue;
    if (reserve > 0) sequence.willRun = true;
    else if (rows === 0) sequence.willRun = false;
  }
}

/** What a step does for one sequence; null: a planned one that is skipped. */
export interface SimJob {
  readonly handle: SequenceHandle;
  readonly rows: number;
  readonly sequence: SimSequence | null;
}

/** Changes the batch as the plan says; returns the rows of the step, those of the plan first. */
export function beginStep(
  plan: StepPlan,
  sequences: readonly (SimSequence | null)[],
  find: (handle: SequenceHandle) => SimSequence | null,
): SimJob[] {
  const jobs: SimJob[] = [];
  for (const { handle, rows, reserve } of plan) {
    const found = find(handle);
    const sequence = found?.finish === FINISH.none ? found : null;
    if (rows > 0)
      jobs.push({ handle, rows: rows - (sequence !== null && lastWaits(sequence, rows) ? 1 : 0), sequence });
    if (sequence !== null && (reserve > 0 || rows === 0)) sequence.batched = reserve > 0;
  }
  const planned = new Set(jobs.map(({ sequence }) => sequence));
  for (const sequence of sequences) {
    if (!sequence?.batched || sequence.closing !== null || sequence.finish !== FINISH.none) continue;
    if (sequence.length >= sequence.capacity || sequence.mask === "awaited" || planned.has(sequence)) continue;
    jobs.push({ handle: sequence.handle, rows: 1, sequence });
  }
  return jobs;
}

/** The last of these rows would give a token for which a mask is awaited. */
function lastWaits({ mask, length, tokens }: SimSequence, rows: number): boolean {
  return mask === "awaited" && length + rows === tokens.length;
}
