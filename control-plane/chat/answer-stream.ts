import { IncrementalDecoder } from "../tokenizer/incremental-decoder.ts";
import { StopMatcher } from "../tokenizer/stop-matcher.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { ReasoningParser } from "./reasoning-parser.ts";
import { sealedTags } from "./tags.ts";
import { type ToolCallDelta, ToolCallParser } from "./tool-call-parser.ts";
import type { ChatTool } from "./tools.ts";

export type { ToolCallDelta } from "./tool-call-parser.ts";

/** What an answer gained. */
export interface AnswerDelta {
  readonly content: string;
  readonly reasoning: string;
  readonly toolCalls: readonly ToolCallDelta[];
}

/** What an answer needs of a model. */
export interface AnswerModel {
  readonly tokenizer: Tokenizer;
  readonly eosTokens: readonly number[];
}

export interface AnswerOptions {
  readonly model: AnswerModel;
  /** Stop strings, none empty. */
  readonly stop: readonly string[];
  /** Tokens beside the model's end tokens that end the answer; they are no part of its text. */
  readonly stopTokens?: readonly number[];
  readonly startsInReasoning: boolean;
  /** null: no tools were offered, so tool-call tags are text. */
  readonly tools: readonly ChatTool[] | null;
  /** "text": everything is content. */
  readonly parse: "chat" | "text";
  /** Gives each tool call its id; without it they are numbered `call_0`, `call_1`, ... */
  readonly newCallId?: () => string;
}

/**
 * Owns the way from generated tokens to what the client reads. push* -> finish.
 *
 *   tokens -> (end tokens dropped) -> text -> up to a stop string -> reasoning | content -> tool calls
 *
 * 1. The deltas joined do not depend on how the tokens are split into pushes.
 * 2. Stop strings are looked for in the whole text, reasoning included, as it is written by the model. A special token
 *    is one sign there: a stop string may hold it, but none matches inside its letters.
 * 3. Only special tokens structure the answer; their spelling in plain letters is text.
 * 4. After a stop string nothing more is told.
 */
export class AnswerStream {
  private readonly dropped: ReadonlySet<number>;
  private readonly decoder: IncrementalDecoder;
  private readonly matcher: StopMatcher;
  private readonly reasoning: ReasoningParser | null;
  private readonly calls: ToolCallParser | null;
  private readonly unseal: (text: string) => string;
  private ended = false;

  constructor(options: AnswerOptions) {
    const { markers } = options.model.tokenizer;
    const tags = sealedTags(markers);
    let calls = 0;
    const newCallId = options.newCallId ?? (() => `call_${calls++}`);
    this.unseal = (text) => markers.unseal(text);
    this.dropped = new Set([...options.model.eosTokens, ...(options.stopTokens ?? [])]);
    this.decoder = new IncrementalDecoder(options.model.tokenizer, "sealed");
    this.matcher = new StopMatcher(options.stop.map((stop) => markers.seal(stop)));
    this.reasoning = options.parse === "chat" ? new ReasoningParser(tags, options.startsInReasoning) : null;
    this.calls =
      options.parse === "chat" && options.tools !== null && options.tools.length > 0
        ? new ToolCallParser({ tags, tools: options.tools, newCallId, unseal: this.unseal })
        : null;
  }

  /** A stop string was found: the answer is over. */
  get stopped(): boolean {
    return this.matcher.stopped;
  }

  /** The stop string that was found, as it was given. */
  get stopString(): string | null {
    return this.matcher.found === null ? null : this.unseal(this.matcher.found);
  }

  /** True when a tool call was told: the finish reason of an answer that was not cut off is then `tool_calls`. */
  get calledTools(): boolean {
    return this.calls !== null && this.calls.calls > 0;
  }

  push(tokens: ArrayLike<number>): AnswerDelta {
    let text = "";
    for (let i = 0; i < tokens.length; i++) {
      if (this.dropped.has(tokens[i]!)) this.ended = true;
      else text += this.decoder.push([tokens[i]!]);
    }
    return this.read(this.matcher.push(text).text, false);
  }

  /** What was held back. */
  finish(): AnswerDelta {
    const last = this.matcher.push(this.decoder.finish()).text + this.matcher.finish();
    return this.read(last, true);
  }

  private read(text: string, last: boolean): AnswerDelta {
    let { reasoning, content } = this.reasoning?.push(text) ?? { reasoning: "", content: text };
    if (last && this.reasoning !== null) {
      const rest = this.reasoning.finish();
      reasoning += rest.reasoning;
      content += rest.content;
    }
    if (this.calls === null) return { content: this.unseal(content), reasoning: this.unseal(reasoning), toolCalls: [] };
    const told = this.calls.push(content);
    const rest = last ? this.calls.finish(this.ended) : { content: "", toolCalls: [] };
    return {
      content: this.unseal(told.content + rest.content),
      reasoning: this.unseal(reasoning),
      toolCalls: rest.toolCalls.length === 0 ? told.toolCalls : [...told.toolCalls, ...rest.toolCalls],
    };
  }
}
