import type { AnswerDelta } from "../../chat/answer-stream.ts";
import {
  type ItemStatus,
  type OutputItem,
  type ResponseHead,
  type ResponseProgress,
  responseObject,
} from "./response-object.ts";

/** How a response ended. */
export interface ResponseEnd {
  readonly status: "completed" | "failed" | "incomplete" | "cancelled";
  /** Unix seconds. */
  readonly endedAt: number;
  readonly error: ResponseProgress["error"];
  readonly usage: ResponseProgress["usage"];
}

/**
 * Owns a response in the making: its items, and the events that tell of them.
 *
 *   made -> begun -> (item added -> parts and deltas -> item done)* -> ended
 *
 * 1 Events are numbered from 0 without a gap, and depend on nothing but the calls made: the same calls, the same events.
 * 2 One item is open at a time, and every item is done before the next is added or the response ends.
 * 3 The items told by events are those of the final response.
 */
export class ResponseEvents {
  readonly output: OutputItem[] = [];
  readonly #head: ResponseHead;
  /** Hex digits that all ids of the response share. */
  readonly #stem: string;
  readonly #tell: boolean;
  #told: string[] = [];
  #next = 0;
  #openCall = -1;
  #open: OutputItem | null = null;
  #progress: ResponseProgress;

  /** `tell`: make events; without, only the response is put together. */
  constructor(head: ResponseHead, tell: boolean) {
    this.#head = head;
    this.#stem = head.id.replace(/^resp_/, "");
    this.#tell = tell;
    const status = head.background ? "queued" : "in_progress";
    this.#progress = { status, completedAt: null, error: null, incomplete: null, output: this.output, usage: null };
  }

  /** The response as it is now. */
  get response() {
    return responseObject(this.#head, this.#progress);
  }

  /** Events since the last call, each a whole SSE event. Their numbers follow each other. */
  take(): readonly string[] {
    const told = this.#told;
    this.#told = [];
    return told;
  }

  /** Number of the next event. */
  get next(): number {
    return this.#next;
  }

  begin(): void {
    this.#lifeEvent("response.created");
    if (this.#progress.status === "queued") this.#lifeEvent("response.queued");
    else this.#lifeEvent("response.in_progress");
  }

  /** More of the answer. */
  push(delta: AnswerDelta): void {
    if (this.#progress.status === "queued") {
      this.#progress = { ...this.#progress, status: "in_progress" };
      this.#lifeEvent("response.in_progress");
    }
    if (delta.reasoning !== "") this.#reason(delta.reasoning);
    if (delta.content !== "") this.#say(delta.content);
    for (const { index, name, arguments: piece } of delta.toolCalls) this.#call(index, name ?? "", piece);
  }

  end({ status, endedAt, error, usage }: ResponseEnd): void {
    this.#close(status === "completed" ? "completed" : "incomplete");
    const incomplete = status === "incomplete" ? ("max_output_tokens" as const) : null;
    const completedAt = status === "completed" ? endedAt : null;
    this.#progress = { ...this.#progress, status, completedAt, error, incomplete, usage };
    // The API knows no event of its own for a cancelled response: its last one says so in its status.
    this.#lifeEvent(status === "cancelled" ? "response.incomplete" : `response.${status}`);
  }

  #reason(piece: string): void {
    if (this.#open?.type !== "reasoning") {
      this.#add({ type: "reasoning", id: this.#id("rs"), summary: [], content: [], status: "in_progress" });
    }
    const item = this.#open as Extract<OutputItem, { readonly type: "reasoning" }>;
    if (item.content.length === 0) {
      this.#itemEvent("response.content_part.added", { content_index: 0, part: { type: "reasoning_text", text: "" } });
      item.content.push({ type: "reasoning_text", text: "" });
    }
    item.content[0]!.text += piece;
    this.#itemEvent("response.reasoning_text.delta", { content_index: 0, delta: piece });
  }

  #say(piece: string): void {
    if (this.#open?.type !== "message") {
      this.#add({ type: "message", id: this.#id("msg"), role: "assistant", content: [], status: "in_progress" });
    }
    const item = this.#open as Extract<OutputItem, { readonly type: "message" }>;
    if (item.content.length === 0) {
      const part = { type: "output_text", text: "", annotations: [], logprobs: [] } as const;
      this.#itemEvent("response.content_part.added", { content_index: 0, part });
      item.content.push({ ...part });
    }
    item.content[0]!.text += piece;
    this.#itemEvent("response.output_text.delta", { content_index: 0, delta: piece, logprobs: [] });
  }

  #call(index: number, name: string, piece: string): void {
    if (this.#open?.type !== "function_call" || this.#openCall !== index) {
      const ids = { id: this.#id("fc"), call_id: this.#id("call") };
      this.#add({ type: "function_call", ...ids, name, arguments: "", status: "in_progress" });
      this.#openCall = index;
    }
    if (piece === "") return;
    const item = this.#open as Extract<OutputItem, { readonly type: "function_call" }>;
    item.arguments += piece;
    this.#itemEvent("response.function_call_arguments.delta", { delta: piece });
  }

  #add(item: OutputItem): void {
    this.#close("completed");
    this.output.push(item);
    this.#open = item;
    this.#event("response.output_item.added", { output_index: this.output.length - 1, item });
  }

  #close(status: ItemStatus): void {
    const item = this.#open;
    if (item === null) return;
    if (item.type === "function_call") {
      this.#itemEvent("response.function_call_arguments.done", { name: item.name, arguments: item.arguments });
    } else {
      const [part] = item.content;
      if (part !== undefined) {
        const { text } = part;
        const rest = part.type === "output_text" ? { text, logprobs: [] } : { text };
        this.#itemEvent(`response.${part.type}.done`, { content_index: 0, ...rest });
        this.#itemEvent("response.content_part.done", { content_index: 0, part });
      }
    }
    item.status = status;
    this.#open = null;
    this.#openCall = -1;
    this.#event("response.output_item.done", { output_index: this.output.length - 1, item });
  }

  #id(kind: string): string {
    return `${kind}_${this.#stem}${this.output.length.toString(16).padStart(4, "0")}`;
  }

  #lifeEvent(type: string): void {
    this.#event(type, { response: this.response });
  }

  #itemEvent(type: string, fields: object): void {
    this.#event(type, { item_id: this.#open!.id, output_index: this.output.length - 1, ...fields });
  }

  #event(type: string, fields: object): void {
    const sequence_number = this.#next++;
    if (!this.#tell) return;
    this.#told.push(`event: ${type}\ndata: ${JSON.stringify({ type, sequence_number, ...fields })}\n\n`);
  }
}
