import type { Generation } from "#protocol/request.ts";
import type { StepLogprobs } from "./native.ts";
import { EMPTY_DIGEST, extendDigest } from "./sim-digest.ts";
import { masked } from "./sim-mask.ts";
import type { SimModel } from "./sim-model.ts";
import { FINISH } from "./step-entries.ts";

/** Tokens below this id are never generated unless asked for: they stand for the special tokens of a real model. */
export const SIM_FIRST_TOKEN = 16;
/** What a simulated model emits as end of text. */
export const SIM_EOS_TOKEN = 2;

/**
 * The token a simulated model puts at `position`: a function of the prompt (the first `promptLength` tokens) and the
 * position alone, so a request that moves to another rank goes on with the same text.
 */
export function simToken(
  tokens: { readonly [index: number]: number; readonly length: number },
  promptLength: number,
  position: number,
  vocabSize: number,
): number {
  let digest = EMPTY_DIGEST;
  for (let i = 0; i < promptLength; i++) digest = extendDigest(digest, tokens[i]!);
  return simTokenAfter(digest, position, vocabSize);
}

/** `simToken` for a prompt of which only the digest is known. */
export function simTokenAfter(promptDigest: number, position: number, vocabSize: number): number {
  let mixed = Math.imul(promptDigest ^ position, 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return SIM_FIRST_TOKEN + (((mixed ^ (mixed >>> 16)) >>> 0) % (vocabSize - SIM_FIRST_TOKEN));
}

/**
 * What the simulated model says after the tokens known so far: a token (or -1: not a number) and a `FINISH` code.
 * `promptDigest` is what the rows of the prompt hold.
 */
export function nextSimToken(
  model: SimModel,
  known: readonly number[],
  promptDigest: number,
  generation: Generation,
  mask: Uint32Array | "awaited" | null = null,
): { readonly token: number; readonly finish: number } {
  const { tokens, promptLength, maxNewTokens, sampling } = generation;
  const index = known.length - promptLength;
  if (model.numericAt(tokens, index)) return { token: -1, finish: FINISH.numeric };
  const mayStop = index >= sampling.minNewTokens;
  const ends = mayStop && model.eosAt(tokens, index);
  const chosen = ends ? SIM_EOS_TOKEN : simTokenAfter(promptDigest, known.length, model.vocabSize);
  const token = masked(chosen, mask);
  if (token === SIM_EOS_TOKEN || (mayStop && sampling.stopTokens.includes(token)))
    return { token, finish: FINISH.stop };
  const full = index + 1 >= maxNewTokens || known.length + 1 >= model.contextLength;
  return { token, finish: full ? FINISH.length : FINISH.none };
}

/** Log-probabilities in the form native reports them; the values mean nothing. */
export function simLogprobs(slot: number, token: number, width: number, vocabSize: number): StepLogprobs {
  const ids = Int32Array.from({ length: width }, (_, i) => (token + i) % vocabSize);
  return { slot, chosen: -0.25, ids, values: Float32Array.from(ids, (_, i) => -0.25 - i) };
}
