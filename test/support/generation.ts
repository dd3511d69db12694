import type { Constraint } from "#protocol/constraint.ts";
import type { Generation, Sampling } from "#protocol/request.ts";

/** `reserve` of a sequence that keeps blocks for all it can come to. */
export const WHOLE = Number.MAX_SAFE_INTEGER;

/** A prompt of `length` plausible token ids; another `salt` gives another prompt from the first token on. */
export function promptOf(length: number, salt = 0): Int32Array {
  return Int32Array.from({ length }, (_, i) => 100 + ((i * 31 + salt * 977 + i * salt) % 1500));
}

/** Greedy, neutral, no log-probabilities. */
export function samplingOf(changes: Partial<Sampling> = {}): Sampling {
  return {
    temperature: 0,
    topK: 0,
    topP: 1,
    minP: 0,
    seed: 0,
    frequencyPenalty: 0,
    presencePenalty: 0,
    repetitionPenalty: 1,
    logitBiasIds: new Int32Array(),
    logitBiasValues: new Float32Array(),
    stopTokens: new Int32Array(),
    minNewTokens: 0,
    topLogprobs: -1,
    ...changes,
  };
}

export function generationOf(
  tokens: Int32Array,
  changes: {
    readonly promptLength?: number;
    readonly maxNewTokens?: number;
    readonly priority?: number;
    readonly sampling?: Partial<Sampling>;
    readonly constraint?: Constraint;
  } = {},
): Generation {
  return {
    tokens,
    promptLength: changes.promptLength ?? tokens.length,
    maxNewTokens: changes.maxNewTokens ?? 32,
    priority: changes.priority ?? 0,
    sampling: samplingOf(changes.sampling),
    constraint: changes.constraint ?? null,
  };
}
