import type { Load } from "#protocol/worker.ts";

/** A rank answers a question at once, or it is not well. */
export const ANSWER_MS = 2_000;
/** The tail of a transfer after the prompt was computed. */
export const TRANSFER_MS = 15_000;
/** Silence of a running stream after which the decode rank is asked whether it still runs. */
export const SILENCE_MS = 4_000;
/** A stream that got no further for so long is moved, even if its rank answers. */
export const STALL_MS = 30_000;

const PREFILL_FLOOR_MS = 20_000;
const PREFILL_SLACK = 4;
/** The rate is mostly measured on short prompts; from about this length on attention, which grows with the square, rules. */
const ATTENTION_TOKENS = 1_024;
/** Tokens per second of a rank that has not measured itself. */
const UNKNOWN_RATE = 100;

/**
 * Time in which a prompt of `tokens` must be computed, waiting included: the rank's own measure with much slack. It
 * bounds a reservation; a rank that died is noticed by its silence long before.
 */
export function prefillMs(tokens: number, load: Load | null): number {
  const rate = load?.prefillTokensPerSecond || UNKNOWN_RATE;
  const pending = load?.pendingPrefillTokens ?? 0;
  const estimateMs = (1000 * (tokens + pending)) / rate;
  return PREFILL_FLOOR_MS + PREFILL_SLACK * estimateMs * (1 + tokens / ATTENTION_TOKENS);
}
