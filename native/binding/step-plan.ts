import type { SequenceHandle } from "#protocol/kv.ts";

/** Int32 values per entry of a plan: slot, generation, rows, reserve. */
export const PLAN_ENTRY_WIDTH = 4;

/** One entry of a plan, with names; `Engine.submit` says what it does. */
export interface PlanEntry {
  readonly handle: SequenceHandle;
  readonly rows: number;
  readonly reserve: number;
}

export type StepPlan = readonly PlanEntry[];

/** The plan as `submit` takes it. */
export function packPlan(plan: StepPlan): Int32Array {
  const packed = new Int32Array(plan.length * PLAN_ENTRY_WIDTH);
  let at = 0;
  for (const { handle, rows, reserve } of plan) {
    packed[at++] = handle.slot;
    packed[at++] = handle.generation;
    packed[at++] = rows;
    packed[at++] = reserve;
  }
  return packed;
}

export function unpackPlan(packed: Int32Array): PlanEntry[] {
  const plan: PlanEntry[] = [];
  for (let at = 0; at < packed.length; at += PLAN_ENTRY_WIDTH) {
    const handle = { slot: packed[at]!, generation: packed[at + 1]! };
    plan.push({ handle, rows: packed[at + 2]!, reserve: packed[at + 3]! });
  }
  return plan;
}

export function sameHandle(a: SequenceHandle, b: SequenceHandle): boolean {
  return a.slot === b.slot && a.generation === b.generation;
}

/** What plans that are queued will do for each sequence: rows in all, and the most they reserve (0: not in the batch). */
export function sumPlans(plans: readonly StepPlan[]): (handle: SequenceHandle) => Omit<PlanEntry, "handle"> {
  const bySlot = new Map<number, { handle: SequenceHandle; rows: number; reserve: number }>();
  for (const { handle, rows, reserve } of plans.flat()) {
    const sum = bySlot.get(handle.slot);
    if (sum === undefined || !sameHandle(sum.handle, handle)) bySlot.set(handle.slot, { handle, rows, reserve });
    else {
      sum.rows += rows;
      sum.reserve = Math.max(sum.reserve, reserve);
    }
  }
  return (handle) => {
    const sum = bySlot.get(handle.slot);
    return sum !== undefined && sameHandle(sum.handle, handle) ? sum : NOTHING;
  };
}

const NOTHING = { rows: 0, reserve: 0 } as const;
