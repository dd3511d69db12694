import type { SequenceHandle } from "#protocol/kv.ts";

/** Int32 values per entry of a plan: slot, generation, rows. */
export const PLAN_ENTRY_WIDTH = 3;

/** Rows that a plan holds of a sequence; 0: it does not name it. */
export function plannedRows(plan: Int32Array, handle: SequenceHandle): number {
  for (let at = 0; at < plan.length; at += PLAN_ENTRY_WIDTH) {
    if (plan[at] === handle.slot && plan[at + 1] === handle.generation) return plan[at + 2]!;
  }
  return 0;
}

/** The rows a plan holds of each sequence, for who asks about many. */
export function indexPlan(plan: Int32Array): (handle: SequenceHandle) => number {
  const entries = new Map<number, number>();
  for (let at = 0; at < plan.length; at += PLAN_ENTRY_WIDTH) entries.set(plan[at]!, at);
  return ({ slot, generation }) => {
    const at = entries.get(slot);
    return at !== undefined && plan[at + 1] === generation ? plan[at + 2]! : 0;
  };
}
