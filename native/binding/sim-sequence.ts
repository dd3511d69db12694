import { BLOCK_TOKENS, type SequenceHandle } from "#protocol/kv.ts";
import type { ExportTarget, NativeErrorCode, SequenceSpec } from "./native.ts";
import { EMPTY_DIGEST, extendDigest } from "./sim-digest.ts";
import type { SimTimer } from "./sim-model.ts";
import type { SimLease } from "./sim-pool.ts";

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
  /** Digest of the text up to each of them. */
  readonly digests: number[];
  /** Names of the full blocks, as far as they were needed. */
  hashes: readonly string[];
  /** KV rows written. */
  length: number;
  /** Rows that blocks are kept for. */
  capacity: number;
  runnable: boolean;
  /** It decodes in every step; it will, once the queued plans have begun. */
  batched: boolean;
  willRun: boolean;
  /** Tokens its next one is chosen among; null: all. */
  mask: Uint32Array | "awaited" | null;
  finish: number;
  closing: { readonly keep: boolean } | null;
  exporting: SimExport | null;
  /** Logical blocks that arrived; null unless waiting for pages. */
  arrived: Set<number> | null;
  arrivalMs: number;
  lapse: SimTimer | null;
}

/** One more token is known. */
export function know(sequence: Pick<SimSequence, "tokens" | "digests">, token: number): void {
  sequence.tokens.push(token);
  sequence.digests.push(extendDigest(sequence.digests.at(-1) ?? EMPTY_DIGEST, token));
}

/** Blocks that the given tokens of a sequence fill, the last one perhaps in part. */
export function givenBlocks(sequence: SimSequence): number {
  return Math.ceil(sequence.spec.generation.tokens.length / BLOCK_TOKENS);
}

/** Most tokens the sequence can come to. */
export function tokenLimit({ spec }: SimSequence, contextLength: number): number {
  return Math.min(spec.generation.promptLength + spec.generation.maxNewTokens, contextLength);
}

/** What native would throw. */
export function simFailure(code: NativeErrorCode, message: string): Error {
  return Object.assign(new Error(message), { code });
}
