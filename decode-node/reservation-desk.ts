import type { ReserveKv } from "#protocol/decode.ts";
import type { Refused } from "#protocol/worker.ts";

/** Within about this time a group of ranks has formed anew. */
const FORMING_MS = 500;

/** What the decision depends on besides the message itself. */
export interface DeskState {
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
  /** Streams that gave their blocks back wait for some: nobody comes before them. */
  readonly pressed: boolean;
  /** Expected milliseconds of a step with one more stream, and the longest wanted; 0: not known, no goal. */
  readonly nextStepMs: number;
  readonly goalMs: number;
  /** When a slot may become free, for the answer to a request that finds none. */
  readonly retryAfterMs: number;
}

/** Why nothing is reserved for this request, or null. Nothing was taken for it yet. */
export function judgeReservation(message: ReserveKv, state: DeskState): Refused | null {
  const { tokens, promptLength, maxNewTokens } = message.generation;
  if (message.epoch !== state.epoch) return refusal("stale_epoch", `this rank is in epoch ${state.epoch}`);
  if (state.draining) return refusal("draining", "this rank takes no new work");
  if (state.alone) return refusal("busy", "this rank waits for the others of its worker", FORMING_MS);
  if (tokens.length < promptLength) return refusal("invalid_request", "tokens are fewer than promptLength");
  const longest = Math.min(state.contextLength - 1, state.poolTokens);
  const needed = Math.min(promptLength + maxNewTokens, state.contextLength);
  if (tokens.length > longest || needed > state.poolTokens) {
    const detail = `${tokens.length} tokens and ${needed - tokens.length} to come; context and pool end at ${longest}`;
    return refusal("context_length_exceeded", detail);
  }
  if (tokens.length - promptLength >= maxNewTokens) return refusal("invalid_request", "nothing is left to generate");
  if (tokens.some((token) => token < 0 || token >= state.vocabSize)) {
    return refusal("invalid_request", `token ids must be within 0..${state.vocabSize - 1}`);
  }
  if (message.deadlineMs <= state.nowMs) return refusal("timeout", "the deadline has passed");
  if (state.requests >= state.maxRequests) return refusal("busy", "every slot is taken", state.retryAfterMs);
  if (state.pressed) return refusal("busy", "streams wait for blocks", state.retryAfterMs);
  if (state.goalMs > 0 && state.requests > 0 && state.nextStepMs > state.goalMs) {
    const detail = `a step would take ${Math.ceil(state.nextStepMs)} ms, the goal is ${state.goalMs} ms`;
    return refusal("busy", detail, state.retryAfterMs);
  }
  return null;
}

export function refusal(code: Refused["code"], detail: string, retryAfterMs: number | null = null): Refused {
  return { kind: "refused", code, detail, retryAfterMs };
}
