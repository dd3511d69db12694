import type { Reservation } from "#protocol/kv.ts";
import type { PrefillWork } from "#protocol/prefill.ts";
import type { Refused } from "#protocol/worker.ts";

/** The rank admits what it can start within this time; what must wait longer waits in the control plane. */
export const START_WITHIN_MS = 1_000;

/** Within about this time a group of ranks has formed anew. */
const FORMING_MS = 500;

/** What the decision depends on besides the work itself. */
export interface IntakeState {
  readonly nowMs: number;
  readonly epoch: number;
  readonly draining: boolean;
  /** One of several ranks, and in no group. */
  readonly alone: boolean;
  readonly vocabSize: number;
  /** Longest prompt plus output of the model, and how many tokens the whole pool holds. */
  readonly contextLength: number;
  readonly poolTokens: number;
  readonly requests: number;
  readonly maxRequests: number;
  /** Prompt tokens admitted and not computed, and how fast they go; 0: not measured yet. */
  readonly pendingPrefillTokens: number;
  readonly prefillTokensPerSecond: number;
  /** Rows of one step. */
  readonly stepTokens: number;
}

/** Why this work may not start now, or null. Nothing was taken for it yet. */
export function judgeWork(work: PrefillWork, state: IntakeState): Refused | null {
  const { generation, reservation } = work;
  const { tokens, promptLength } = generation;
  if (work.epoch !== state.epoch) return refusal("stale_epoch", `this rank is in epoch ${state.epoch}`);
  if (state.draining) return refusal("draining", "this rank takes no new work");
  if (state.alone) return refusal("busy", "this rank waits for the others of its worker", FORMING_MS);
  // One more token must fit behind the prompt.
  const longest = Math.min(state.contextLength - 1, state.poolTokens);
  if (tokens.length > longest) {
    return refusal("context_length_exceeded", `${tokens.length} prompt tokens, at most ${longest}`);
  }
  if (tokens.length < promptLength) return refusal("invalid_request", "tokens are fewer than promptLength");
  if (tokens.length - promptLength >= generation.maxNewTokens) {
    return refusal("invalid_request", "nothing is left to generate");
  }
  if (tokens.some((token) => token < 0 || token >= state.vocabSize)) {
    return refusal("invalid_request", `token ids must be within 0..${state.vocabSize - 1}`);
  }
  const wrong = reservation === null ? null : judgeReservation(reservation, tokens.length);
  if (wrong !== null) return wrong;
  if (work.deadlineMs <= state.nowMs) return refusal("timeout", "the deadline has passed");
  if (state.requests >= state.maxRequests) return refusal("busy", "every slot is taken", waitMs(state));
  const wait = waitMs(state);
  if (wait > START_WITHIN_MS)
    return refusal("busy", `${state.pendingPrefillTokens} tokens are waiting`, wait - START_WITHIN_MS);
  return null;
}

/** Why a prompt of `given` tokens cannot be sent there, or null. */
export function judgeReservation({ cachedTokens }: Reservation, given: number): Refused | null {
  if (cachedTokens < given) return null;
  return refusal("invalid_request", "reservation.cachedTokens must leave a token to compute");
}

/** Milliseconds until everything admitted is computed. While unmeasured, two steps are taken to fit. */
function waitMs(state: IntakeState): number {
  if (state.pendingPrefillTokens === 0) return 0;
  if (state.prefillTokensPerSecond === 0)
    return state.pendingPrefillTokens > 2 * state.stepTokens ? 2 * START_WITHIN_MS : 0;
  return (state.pendingPrefillTokens / state.prefillTokensPerSecond) * 1000;
}

function refusal(code: Refused["code"], detail: string, retryAfterMs: number | null = null): Refused {
  const polite = retryAfterMs === null ? null : Math.max(50, Math.ceil(retryAfterMs));
  return { kind: "refused", code, detail, retryAfterMs: polite };
}
