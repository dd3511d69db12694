import type { FinishReason, Logprobs } from "#protocol/request.ts";
import type { AnswerDelta, AnswerStream, ToolCallDelta } from "../chat/answer-stream.ts";
import type { ServedModel } from "../chat/served-model.ts";
import type { ReasoningTokens, ThoughtfulSink } from "./choice.ts";
import { type ChatTokenLogprob, chatLogprobs, type IsEnd } from "./logprobs.ts";

/** The parts of `chat.completion.chunk` events that are the same for a whole stream. */
export interface ChunkFrame {
  /** Everything before the choice's index. */
  readonly head: string;
  /** Everything after the list of choices. */
  readonly tail: string;
}

/** Makes the frame; with `usage` every chunk but the last says `"usage":null`, as clients of `include_usage` expect. */
export function chunkFrame(id: string, object: string, created: number, model: string, usage: boolean): ChunkFrame {
  const envelope = JSON.stringify({ id, object, created, model }).slice(0, -1);
  return { head: `data: ${envelope},"choices":[{"index":`, tail: usage ? ',"usage":null}\n\n' : "}\n\n" };
}

/**
 * One choice of a streamed chat answer, as `chat.completion.chunk` events.
 *
 *   begin (role) -> deltas ... -> end (finish_reason)
 *
 * C1 The first event carries the role, only the last a finish reason.
 * C2 Log-probabilities ride on the next event after their tokens; none is lost when text is held back.
 */
export class ChatChunks implements ThoughtfulSink {
  readonly #answer: AnswerStream;
  readonly #model: ServedModel;
  readonly #isEnd: IsEnd;
  readonly #reasoning: ReasoningTokens;
  readonly #delta: string;
  readonly #open: string;
  readonly #tail: string;
  #rows: ChatTokenLogprob[] | null;
  #begun = false;

  constructor(options: {
    readonly frame: ChunkFrame;
    readonly index: number;
    readonly answer: AnswerStream;
    readonly model: ServedModel;
    readonly isEnd: IsEnd;
    readonly logprobs: boolean;
    readonly reasoning: ReasoningTokens;
  }) {
    this.#answer = options.answer;
    this.#model = options.model;
    this.#isEnd = options.isEnd;
    this.#reasoning = options.reasoning;
    this.#rows = options.logprobs ? [] : null;
    this.#delta = `${options.frame.head}${options.index},"delta":`;
    this.#open = `,"logprobs":null,"finish_reason":null}]${options.frame.tail}`;
    this.#tail = options.frame.tail;
  }

  get reasoningTokens(): number {
    return this.#reasoning.count;
  }

  get stopped(): boolean {
    return this.#answer.stopped;
  }

  push(tokens: Int32Array, logprobs: Logprobs | null): string {
    this.#reasoning.push(tokens);
    if (this.#rows !== null && logprobs !== null) {
      this.#rows.push(...chatLogprobs(this.#model, tokens, logprobs, this.#isEnd));
    }
    return this.#begin() + this.#events(this.#answer.push(tokens));
  }

  finish(finish: FinishReason): string {
    const events = this.#begin() + this.#events(this.#answer.finish());
    const reason = finish === "stop" && this.#answer.calledTools ? "tool_calls" : finish;
    return `${events}${this.#delta}{},"logprobs":${this.#takeRows()},"finish_reason":"${reason}"}]${this.#tail}`;
  }

  think(text: string): string {
    return this.#begin() + this.#event(`{"reasoning_content":${JSON.stringify(text)}}`);
  }

  #begin(): string {
    if (this.#begun) return "";
    this.#begun = true;
    return `${this.#delta}{"role":"assistant","content":""}${this.#open}`;
  }

  #events(delta: AnswerDelta): string {
    let events = "";
    if (delta.reasoning !== "") events += this.#event(`{"reasoning_content":${JSON.stringify(delta.reasoning)}}`);
    if (delta.content !== "") events += this.#event(`{"content":${JSON.stringify(delta.content)}}`);
    for (const call of delta.toolCalls) {
      events += this.#event(`{"tool_calls":[${JSON.stringify(toolCallDelta(call))}]}`);
    }
    return events;
  }

  #event(delta: string): string {
    if (this.#rows === null) return this.#delta + delta + this.#open;
    return `${this.#delta}${delta},"logprobs":${this.#takeRows()},"finish_reason":null}]${this.#tail}`;
  }

  #takeRows(): string {
    if (this.#rows === null || this.#rows.length === 0) return "null";
    const rows = JSON.stringify({ content: this.#rows, refusal: null });
    this.#rows = [];
    return rows;
  }
}

/** The first delta of a call carries id, type and name, the further ones pieces of its arguments. */
function toolCallDelta(call: ToolCallDelta): object {
  if (call.id === null) return { index: call.index, function: { arguments: call.arguments } };
  const { index, id, name } = call;
  return { index, id, type: "function", function: { name, arguments: call.arguments } };
}
