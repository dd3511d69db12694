import type { FinishReason } from "#protocol/request.ts";
import type { StepLogprobs, StepResult } from "./native.ts";

/** Int32 values per entry of `StepResult.entries`. */
export const STEP_ENTRY_WIDTH = 6;

/**
 * Finish codes of `StepResult.entries`. A sequence ends by itself with `stop` (the produced token is end of text or one of
 * `stopTokens`; neither can be chosen before `minNewTokens`), `length` (maxNewTokens or the context is reached) or
 * `numeric` (a logit was not a number; no token, and its blocks are not kept). It keeps slot and blocks until
 * `closeSequence`.
 */
export const FINISH = { none: 0, stop: 1, length: 2, numeric: 3, skipped: 4 } as const;

/** One entry of a step's result, with names. */
export interface StepEntry {
  readonly slot: number;
  readonly generation: number;
  readonly rows: number;
  /** Produced, oldest first. */
  readonly tokens: readonly number[];
  /** One per token, where the sequence asked for them. */
  readonly logprobs: readonly StepLogprobs[];
  /** One of `FINISH`. */
  readonly finish: number;
  /** KV rows of the sequence after the step. */
  readonly length: number;
}

/** The entries of a step, in its order. */
export function stepEntries({ entries, tokens, logprobs }: StepResult): StepEntry[] {
  const list: StepEntry[] = [];
  let token = 0;
  let logprob = 0;
  for (let at = 0; at < entries.length; at += STEP_ENTRY_WIDTH) {
    const slot = entries[at]!;
    const firstToken = token;
    const firstLogprob = logprob;
    token += entries[at + 3]!;
    while (logprob < logprobs.length && logprob - firstLogprob < token - firstToken && logprobs[logprob]!.slot === slot)
      logprob++;
    list.push({
      slot,
      generation: entries[at + 1]!,
      rows: entries[at + 2]!,
      tokens: token === firstToken ? NONE : Array.from(tokens.subarray(firstToken, token)),
      logprobs: logprob === firstLogprob ? NONE : logprobs.slice(firstLogprob, logprob),
      finish: entries[at + 4]!,
      length: entries[at + 5]!,
    });
  }
  return list;
}

/** Rows of a whole step. */
export function rowsOf(entries: readonly StepEntry[]): number {
  return entries.reduce((sum, { rows }) => sum + rows, 0);
}

const NONE: readonly never[] = [];

/** How generation ended by itself, or null for the other codes. */
export function finishReason(code: number): FinishReason | null {
  if (code === FINISH.stop) return "stop";
  return code === FINISH.length ? "length" : null;
}
