import type { Logprobs } from "#protocol/request.ts";
import type { ServedModel } from "../chat/served-model.ts";

/** What JSON, which has no infinity, says of an impossible token. */
const LEAST_LOGPROB = -9999;

interface TokenLogprob {
  readonly token: string;
  readonly logprob: number;
  readonly bytes: readonly number[];
}

/** An entry of `choices[].logprobs.content` of the chat API. */
export interface ChatTokenLogprob extends TokenLogprob {
  readonly top_logprobs: readonly TokenLogprob[];
}

/** `choices[].logprobs` of the completions API: parallel lists, one entry per token. */
export interface CompletionLogprobs {
  readonly tokens: string[];
  readonly token_logprobs: number[];
  readonly top_logprobs: Record<string, number>[];
  /** Where each token begins, in Unicode characters from the start of the choice's text. */
  readonly text_offset: number[];
}

/** True for tokens that end an answer and are no part of it. */
export type IsEnd = (token: number) => boolean;

/** The end tokens of a request: the model's own and its `stop_token_ids`. */
export function endTokens(model: ServedModel, stopTokens: Int32Array): IsEnd {
  const ends = new Set([...model.eosTokens, ...stopTokens]);
  return (token) => ends.has(token);
}

/** Rows of the chat API for a run of tokens; end tokens are left out. */
export function chatLogprobs(
  model: ServedModel,
  tokens: Int32Array,
  logprobs: Logprobs,
  isEnd: IsEnd,
): ChatTokenLogprob[] {
  const { chosen, width, ids, values } = logprobs;
  const rows: ChatTokenLogprob[] = [];
  for (let i = 0; i < tokens.length; i++) {
    const token = tokens[i]!;
    if (isEnd(token)) continue;
    const top: TokenLogprob[] = [];
    for (let k = i * width; k < (i + 1) * width; k++) top.push(tokenLogprob(model, ids[k]!, values[k]!));
    rows.push({ ...tokenLogprob(model, token, chosen[i]!), top_logprobs: top });
  }
  return rows;
}

/** The lists of the completions API, filled run by run and taken in pieces while streaming. */
export class CompletionLogprobRows {
  readonly #model: ServedModel;
  readonly #isEnd: IsEnd;
  #offset: number;
  #rows = noRows();

  /** `offset`: characters of the choice's text before the first generated token (an echoed prompt). */
  constructor(model: ServedModel, isEnd: IsEnd, offset: number) {
    this.#model = model;
    this.#isEnd = isEnd;
    this.#offset = offset;
  }

  push(tokens: Int32Array, logprobs: Logprobs): void {
    const { chosen, width, ids, values } = logprobs;
    const { tokenizer } = this.#model;
    for (let i = 0; i < tokens.length; i++) {
      const token = tokens[i]!;
      if (this.#isEnd(token)) continue;
      const top: [string, number][] = [];
      for (let k = i * width; k < (i + 1) * width; k++) top.push([tokenizer.tokenText(ids[k]!), finite(values[k]!)]);
      this.#rows.tokens.push(tokenizer.tokenText(token));
      this.#rows.token_logprobs.push(finite(chosen[i]!));
      this.#rows.top_logprobs.push(Object.fromEntries(top));
      this.#rows.text_offset.push(this.#offset);
      this.#offset += charactersBegun(tokenizer.tokenBytes(token));
    }
  }

  /** What was pushed since the last call. */
  take(): CompletionLogprobs {
    const rows = this.#rows;
    this.#rows = noRows();
    return rows;
  }
}

function noRows(): CompletionLogprobs {
  return { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] };
}

function tokenLogprob(model: ServedModel, token: number, logprob: number): TokenLogprob {
  const { tokenizer } = model;
  return { token: tokenizer.tokenText(token), logprob: finite(logprob), bytes: [...tokenizer.tokenBytes(token)] };
}

function finite(logprob: number): number {
  return Math.max(LEAST_LOGPROB, logprob);
}

/** A token may hold part of a character: the one with the character's first byte counts it. */
function charactersBegun(bytes: Uint8Array): number {
  let begun = 0;
  for (const byte of bytes) if ((byte & 0xc0) !== 0x80) begun++;
  return begun;
}
