import type { FinishReason, Logprobs } from "#protocol/request.ts";
import type { AnswerDelta, AnswerStream } from "../chat/answer-stream.ts";
import type { ServedModel } from "../chat/served-model.ts";
import type { ReasoningTokens, ThoughtfulSink } from "./choice.ts";
import { type ChatTokenLogprob, chatLogprobs, type IsEnd } from "./logprobs.ts";

interface ToolCall {
  readonly id: string;
  readonly type: "function";
  readonly function: { name: string; arguments: string };
}

/** One choice of a unary chat answer, gathered until it is whole. */
export class ChatAnswer implements ThoughtfulSink {
  readonly #answer: AnswerStream;
  readonly #model: ServedModel;
  readonly #isEnd: IsEnd;
  readonly #reasoningTokens: ReasoningTokens;
  readonly #rows: ChatTokenLogprob[] | null;
  readonly #calls: ToolCall[] = [];
  #content = "";
  #reasoning = "";
  #finish: FinishReason | "tool_calls" = "stop";

  constructor(options: {
    readonly answer: AnswerStream;
    readonly model: ServedModel;
    readonly isEnd: IsEnd;
    readonly logprobs: boolean;
    readonly reasoning: ReasoningTokens;
  }) {
    this.#answer = options.answer;
    this.#model = options.model;
    this.#isEnd = options.isEnd;
    this.#reasoningTokens = options.reasoning;
    this.#rows = options.logprobs ? [] : null;
  }

  get reasoningTokens(): number {
    return this.#reasoningTokens.count;
  }

  get stopped(): boolean {
    return this.#answer.stopped;
  }

  push(tokens: Int32Array, logprobs: Logprobs | null): string {
    this.#reasoningTokens.push(tokens);
    if (this.#rows !== null && logprobs !== null) {
      this.#rows.push(...chatLogprobs(this.#model, tokens, logprobs, this.#isEnd));
    }
    this.#gather(this.#answer.push(tokens));
    return "";
  }

  finish(finish: FinishReason): string {
    this.#gather(this.#answer.finish());
    this.#finish = finish === "stop" && this.#answer.calledTools ? "tool_calls" : finish;
    return "";
  }

  /** What went before the answer, told as part of its reasoning. */
  think(text: string): string {
    this.#reasoning += text;
    return "";
  }

  /** The entry of `choices`. */
  choice(index: number): object {
    const calls = this.#calls;
    return {
      index,
      message: {
        role: "assistant",
        content: this.#content === "" && calls.length > 0 ? null : this.#content,
        ...(this.#reasoning === "" ? {} : { reasoning_content: this.#reasoning }),
        ...(calls.length === 0 ? {} : { tool_calls: calls }),
        refusal: null,
      },
      logprobs: this.#rows === null ? null : { content: this.#rows, refusal: null },
      finish_reason: this.#finish,
    };
  }

  #gather(delta: AnswerDelta): void {
    this.#content += delta.content;
    this.#reasoning += delta.reasoning;
    for (const { index, id, name, arguments: piece } of delta.toolCalls) {
      const begun = this.#calls[index];
      if (begun !== undefined) begun.function.arguments += piece;
      else this.#calls[index] = { id: id ?? "", type: "function", function: { name: name ?? "", arguments: piece } };
    }
  }
}
