import { BLOCK_TOKENS, type SequenceHandle } from "#protocol/kv.ts";
import type { ExportTarget, NativeErrorCode, SequenceSpec } from "./native.ts";
import type { SimTimer } from "./sim-model.ts";
import type { SimLease } from "./sim-pool.ts";
import { plannedRows } from "./step-plan.ts";

/** The sending half of a sequence. */
export interface SimExport {
  readonly target: ExportTarget;
  readonly deadline: SimTimer;
  readonly startMs: number;
  announced: number;
  acked: number;
}

/** A sequence of a simulated engine. */
export interface SimSequence {
  readonly handle: SequenceHandle;
  readonly spec: SequenceSpec;
  readonly lease: SimLease;
  readonly cachedTokens: number;
  /** Known tokens: given, then generated. */
  readonly tokens: number[];
  /** KV rows written. */
  length: number;
  runnable: boolean;
  finish: number;
  closing: { readonly keep: boolean } | null;
  exporting: SimExport | null;
  /** Logical blocks that arrived; null unless waiting for pages. */
  arrived: Set<number> | null;
  arrivalMs: number;
  lapse: SimTimer | null;
}

/** Blocks that the given tokens of a sequence fill, the last one perhaps in part. */
export function givenBlocks(sequence: SimSequence): number {
  return Math.ceil(sequence.spec.generation.tokens.length / BLOCK_TOKENS);
}

/** Rows that could be computed once `plans` are done; one of them may produce the next one's input. */
export function computableRows(sequence: SimSequence, plans: readonly Int32Array[]): number {
  const { tokens, promptLength, maxNewTokens } = sequence.spec.generation;
  const most = sequence.spec.reserve === "prompt" ? tokens.length : promptLength + maxNewTokens;
  let { length } = sequence;
  let known = sequence.tokens.length;
  for (const plan of plans) {
    const rows = plannedRows(plan, sequence.handle);
    length += rows;
    if (rows > 0 && length === known) known++;
  }
  return Math.min(known, most) - length;
}

/** What native would throw. */
export function simFailure(code: NativeErrorCode, message: string): Error {
  return Object.assign(new Error(message), { code });
}
