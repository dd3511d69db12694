import type { FinishReason, Logprobs } from "#protocol/request.ts";
import type { AnswerStream } from "../chat/answer-stream.ts";
import type { ServedModel } from "../chat/served-model.ts";
import type { ChunkFrame } from "./chat-stream.ts";
import type { ChoiceSink } from "./choice.ts";
import { CompletionLogprobRows, type IsEnd } from "./logprobs.ts";

/**
 * One choice of the completions API. With a frame it makes `text_completion` events while tokens come, without one it
 * gathers the whole text. An echoed prompt comes before the first token.
 */
export class CompletionChoice implements ChoiceSink {
  readonly #answer: AnswerStream;
  readonly #frame: ChunkFrame | null;
  readonly #index: number;
  readonly #rows: CompletionLogprobRows | null;
  #held: string;
  #text = "";
  #finish: FinishReason = "stop";

  constructor(options: {
    readonly frame: ChunkFrame | null;
    readonly index: number;
    readonly answer: AnswerStream;
    readonly model: ServedModel;
    readonly isEnd: IsEnd;
    readonly logprobs: boolean;
    /** Text before the first token. */
    readonly echo: string;
  }) {
    this.#answer = options.answer;
    this.#frame = options.frame;
    this.#index = options.index;
    this.#held = options.echo;
    const offset = options.logprobs ? [...options.echo].length : 0;
    this.#rows = options.logprobs ? new CompletionLogprobRows(options.model, options.isEnd, offset) : null;
  }

  get stopped(): boolean {
    return this.#answer.stopped;
  }

  push(tokens: Int32Array, logprobs: Logprobs | null): string {
    if (logprobs !== null) this.#rows?.push(tokens, logprobs);
    return this.#take(this.#answer.push(tokens).content);
  }

  finish(finish: FinishReason): string {
    this.#finish = finish;
    const rest = this.#answer.finish().content;
    if (this.#frame !== null) return this.#event(this.#held + rest, `"${finish}"`);
    this.#take(rest);
    return "";
  }

  /** The entry of `choices` of a unary answer. */
  choice(): object {
    const logprobs = this.#rows?.take() ?? null;
    return { text: this.#text, index: this.#index, logprobs, finish_reason: this.#finish };
  }

  #take(piece: string): string {
    const text = this.#held + piece;
    this.#held = "";
    if (this.#frame !== null) return text === "" ? "" : this.#event(text, "null");
    this.#text += text;
    return "";
  }

  #event(text: string, finish: string): string {
    const { head, tail } = this.#frame!;
    const rows = this.#rows?.take();
    const logprobs = rows === undefined || rows.tokens.length === 0 ? "null" : JSON.stringify(rows);
    return `${head}${this.#index},"text":${JSON.stringify(text)},"logprobs":${logprobs},"finish_reason":${finish}}]${tail}`;
  }
}
