import type { FinishReason } from "#protocol/request.ts";
import type { AnswerDelta, AnswerStream } from "../chat/answer-stream.ts";
import type { ChoiceSink } from "./choice.ts";

/** A content block of an answer, whole. */
export type ContentBlock =
  | { readonly type: "thinking"; thinking: string; readonly signature: string }
  | { readonly type: "text"; text: string; readonly citations: null }
  | {
      readonly type: "tool_use";
      readonly id: string;
      readonly name: string;
      input: unknown;
      readonly caller: { readonly type: "direct" };
    };

/** Whom the blocks of an answer are told, piece by piece. */
export interface BlockReader {
  begin(index: number, block: ContentBlock): void;
  /** `piece`: text of the running block; of a tool's input a piece of its JSON. */
  go(index: number, type: ContentBlock["type"], piece: string): void;
  end(index: number, type: ContentBlock["type"]): void;
}

/** How an answer ended, in Anthropic's words. */
export interface MessageStop {
  readonly stop_reason: "end_turn" | "max_tokens" | "stop_sequence" | "tool_use";
  readonly stop_sequence: string | null;
}

/**
 * Cuts one answer into blocks: thinking, text, a call each.
 *
 *   (begin -> go* -> end)* -> finished
 *
 * Blocks are numbered from 0 and never interleave.
 */
export class MessageBlocks {
  readonly #answer: AnswerStream;
  readonly #reader: BlockReader;
  #next = 0;
  #open: { readonly type: ContentBlock["type"]; readonly call: number } | null = null;

  constructor(answer: AnswerStream, reader: BlockReader) {
    this.#answer = answer;
    this.#reader = reader;
  }

  get stopped(): boolean {
    return this.#answer.stopped;
  }

  push(tokens: Int32Array): void {
    this.#take(this.#answer.push(tokens));
  }

  finish(finish: FinishReason): MessageStop {
    this.#take(this.#answer.finish());
    this.#close();
    const { stopString, calledTools } = this.#answer;
    if (stopString !== null) return { stop_reason: "stop_sequence", stop_sequence: stopString };
    const reason = finish === "length" ? "max_tokens" : calledTools ? "tool_use" : "end_turn";
    return { stop_reason: reason, stop_sequence: null };
  }

  #take({ reasoning, content, toolCalls }: AnswerDelta): void {
    if (reasoning !== "") {
      this.#enter({ type: "thinking", thinking: "", signature: "" }, -1);
      this.#go(reasoning);
    }
    if (content !== "") {
      this.#enter({ type: "text", text: "", citations: null }, -1);
      this.#go(content);
    }
    for (const { index, id, name, arguments: piece } of toolCalls) {
      this.#enter({ type: "tool_use", id: id ?? "", name: name ?? "", input: {}, caller: { type: "direct" } }, index);
      if (piece !== "") this.#go(piece);
    }
  }

  #enter(block: ContentBlock, call: number): void {
    if (this.#open?.type === block.type && this.#open.call === call) return;
    this.#close();
    this.#open = { type: block.type, call };
    this.#reader.begin(this.#next++, block);
  }

  #go(piece: string): void {
    this.#reader.go(this.#next - 1, this.#open!.type, piece);
  }

  #close(): void {
    if (this.#open !== null) this.#reader.end(this.#next - 1, this.#open.type);
    this.#open = null;
  }
}

/** A unary answer: its blocks, gathered. */
export class GatheredMessage implements ChoiceSink {
  readonly content: ContentBlock[] = [];
  stop: MessageStop = { stop_reason: "end_turn", stop_sequence: null };
  readonly #blocks: MessageBlocks;
  #json = "";

  constructor(answer: AnswerStream) {
    this.#blocks = new MessageBlocks(answer, {
      begin: (_index, block) => {
        this.#json = "";
        this.content.push(block);
      },
      go: (_index, _type, piece) => {
        const block = this.content.at(-1)!;
        if (block.type === "thinking") block.thinking += piece;
        else if (block.type === "text") block.text += piece;
        else this.#json += piece;
      },
      end: () => {
        const block = this.content.at(-1)!;
        if (block.type === "tool_use") block.input = inputOf(this.#json);
      },
    });
  }

  get stopped(): boolean {
    return this.#blocks.stopped;
  }

  push(tokens: Int32Array): string {
    this.#blocks.push(tokens);
    return "";
  }

  finish(finish: FinishReason): string {
    this.stop = this.#blocks.finish(finish);
    return "";
  }
}

/** A streamed answer: Anthropic's events. The last two, which need the request's usage, are the caller's. */
export class StreamedMessage implements ChoiceSink {
  stop: MessageStop = { stop_reason: "end_turn", stop_sequence: null };
  readonly #blocks: MessageBlocks;
  #events: string;

  /** `start`: the `message_start` event, sent with the first tokens. */
  constructor(answer: AnswerStream, start: string) {
    this.#events = start;
    const tell = (name: string, fields: object) => {
      this.#events += messageEvent(name, fields);
    };
    this.#blocks = new MessageBlocks(answer, {
      begin: (index, block) => tell("content_block_start", { index, content_block: block }),
      go: (index, type, piece) => tell("content_block_delta", { index, delta: deltaOf(type, piece) }),
      end: (index, type) => {
        // Clients expect one before a thought ends; nothing here needs what it would prove.
        if (type === "thinking")
          tell("content_block_delta", { index, delta: { type: "signature_delta", signature: "" } });
        tell("content_block_stop", { index });
      },
    });
  }

  get stopped(): boolean {
    return this.#blocks.stopped;
  }

  push(tokens: Int32Array): string {
    this.#blocks.push(tokens);
    return this.#take();
  }

  finish(finish: FinishReason): string {
    this.stop = this.#blocks.finish(finish);
    return this.#take();
  }

  #take(): string {
    const events = this.#events;
    this.#events = "";
    return events;
  }
}

/** One event of Anthropic's stream. */
export function messageEvent(type: string, fields: object): string {
  return `event: ${type}\ndata: ${JSON.stringify({ type, ...fields })}\n\n`;
}

function deltaOf(type: ContentBlock["type"], piece: string): object {
  if (type === "thinking") return { type: "thinking_delta", thinking: piece };
  return type === "text" ? { type: "text_delta", text: piece } : { type: "input_json_delta", partial_json: piece };
}

/** Input of a call; one that was cut off is no JSON and says nothing. */
function inputOf(json: string): unknown {
  try {
    return JSON.parse(json === "" ? "{}" : json) as unknown;
  } catch {
    return {};
  }
}
