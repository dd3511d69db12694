import type { FinishReason, Logprobs } from "#protocol/request.ts";
import type { ServedModel } from "../chat/served-model.ts";
import { SPELLED_TAGS } from "../chat/tags.ts";
import type { Settled } from "../flow/request-flow.ts";

/**
 * One choice's tokens on their way into an answer. `finish` comes last and once.
 *
 * Both return the SSE events to send now: "" when nothing is due, and always "" for a unary answer.
 */
export interface ChoiceSink {
  push(tokens: Int32Array, logprobs: Logprobs | null): string;
  /** True once a stop string was found: the request may end. */
  readonly stopped: boolean;
  finish(finish: FinishReason): string;
  /** Tokens of its reasoning so far, where that is told apart. */
  readonly reasoningTokens?: number;
}

/** An answer that may tell, as its reasoning, what others thought before it. */
export interface ThoughtfulSink extends ChoiceSink {
  think(text: string): string;
}

/** Counts the tokens of one choice's reasoning; those of its tags are left out. */
export class ReasoningTokens {
  count = 0;
  readonly #open: number | undefined;
  readonly #close: number | undefined;
  #state: "undecided" | "inside" | "outside";

  constructor(model: ServedModel, startsInReasoning: boolean) {
    const { specialTokens } = model.tokenizer;
    this.#open = specialTokens.get(SPELLED_TAGS.thinkOpen);
    this.#close = specialTokens.get(SPELLED_TAGS.thinkClose);
    this.#state = startsInReasoning ? "inside" : "undecided";
  }

  push(tokens: Int32Array): void {
    if (this.#state === "outside") return;
    for (const token of tokens) {
      if (this.#state === "undecided") this.#state = token === this.#open ? "inside" : "outside";
      else if (token === this.#close) this.#state = "outside";
      else if (token !== this.#open) this.count++;
      if (this.#state === "outside") return;
    }
  }
}

/** OpenAI's `usage`. */
export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
  readonly completion_tokens_details?: { readonly reasoning_tokens: number };
}

/**
 * What a request used. A prompt counts once however many choices it has; its cached tokens are those of its first
 * choice. `settled` holds `perPrompt` choices of each prompt in turn. `reasoning` null: the API knows none.
 */
export function usageOf(
  promptLengths: readonly number[],
  settled: readonly Settled[],
  reasoning: readonly ReasoningTokens[] | null,
): Usage {
  const perPrompt = settled.length / promptLengths.length;
  let prompt = 0;
  let cached = 0;
  let completion = 0;
  for (const length of promptLengths) prompt += length;
  for (const [index, one] of settled.entries()) {
    completion += one.completionTokens;
    if (index % perPrompt === 0) cached += one.cachedTokens;
  }
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: cached },
    ...(reasoning === null
      ? {}
      : { completion_tokens_details: { reasoning_tokens: reasoning.reduce((sum, one) => sum + one.count, 0) } }),
  };
}
