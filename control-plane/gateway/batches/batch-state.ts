import type { BatchEntry, BatchFault, BatchRecord } from "#protocol/batch-entry.ts";
import type { JournalEntry } from "#protocol/bus/journal.ts";
import type { GatewayId } from "#protocol/ids.ts";

export type BatchStatus =
  | ("validating" | "in_progress" | "finalizing" | "cancelling")
  | ("completed" | "failed" | "expired" | "cancelled");

/** Unix seconds; null: that has not happened. */
type Moment = number | null;

/** A batch as its log tells it. */
export interface BatchState {
  readonly record: BatchRecord;
  readonly status: BatchStatus;
  /** Who works on it; null: nobody. */
  readonly owner: GatewayId | null;
  readonly lastSeq: number;
  readonly createdAt: number;
  readonly begunAt: Moment;
  readonly cancellingAt: Moment;
  readonly finalizingAt: Moment;
  readonly endedAt: Moment;
  /** Lines of its input; null: they were not counted yet. */
  readonly total: number | null;
  readonly faults: readonly BatchFault[];
  /** Lines that went well, and that did not; null before its end. */
  readonly counts: { readonly completed: number; readonly failed: number } | null;
}

/** null: what is left of the log does not tell of a batch. */
export function batchState(entries: readonly JournalEntry<BatchEntry>[]): BatchState | null {
  const [first, ...rest] = entries;
  if (first?.value.step.kind !== "created") return null;
  const created: BatchState = {
    ...{ record: first.value.step.record, status: "validating", owner: null, lastSeq: first.seq },
    ...{ createdAt: first.value.at, begunAt: null, cancellingAt: null, finalizingAt: null, endedAt: null },
    ...{ total: null, faults: [], counts: null },
  };
  return rest.reduce(stateAfter, created);
}

/** Once it has ended, a batch stays as it is. */
export function stateAfter(state: BatchState, { seq, value }: JournalEntry<BatchEntry>): BatchState {
  const { step, writer, at } = value;
  const next = { ...state, lastSeq: seq };
  if (state.endedAt !== null) return next;
  switch (step.kind) {
    case "created":
      return next;
    case "claimed":
      return { ...next, owner: writer };
    case "left":
      return { ...next, owner: null };
    case "begun": {
      const status = state.status === "validating" ? "in_progress" : state.status;
      return { ...next, status, total: step.total, begunAt: at };
    }
    case "cancelling":
      return { ...next, status: "cancelling", cancellingAt: at };
    case "finalizing":
      return { ...next, finalizingAt: at, status: state.status === "cancelling" ? "cancelling" : "finalizing" };
    case "ended": {
      const { status, faults, completed, failed } = step;
      return { ...next, status, faults, counts: { completed, failed }, endedAt: at, owner: null };
    }
  }
}
