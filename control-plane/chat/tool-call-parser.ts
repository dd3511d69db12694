import type { BlockStep, CallBlock } from "./call-block.ts";
import { heldTail } from "./held-tail.ts";
import { JsonCallBlock } from "./json-call-block.ts";
import type { Tags } from "./tags.ts";
import type { ChatTool } from "./tools.ts";
import { XmlCallBlock } from "./xml-call-block.ts";

/** A piece of a tool call in OpenAI's streaming form: the first has id and name, all have a piece of the arguments. */
export interface ToolCallDelta {
  readonly index: number;
  readonly id: string | null;
  readonly name: string | null;
  readonly arguments: string;
}

/** A piece of an answer, told apart. */
export interface CalledText {
  readonly content: string;
  readonly toolCalls: readonly ToolCallDelta[];
}

/** What the parser needs beside the text. */
export interface ToolCallOptions {
  readonly tags: Tags;
  readonly tools: readonly ChatTool[];
  readonly newCallId: () => string;
  /** Spells the sealed markers in text that goes into names and arguments. */
  readonly unseal: (text: string) => string;
}

/**
 * Tells tool calls from content in text that arrives in pieces. The form of a block shows in its first character that is
 * no white space: `{` is JSON, all else the tagged form.
 *
 *   text -> opened -> block -> text ...
 *
 * 1. What comes out, joined, does not depend on how the text is cut.
 * 2. Nothing but white space beside a call is lost: a block that holds no call is content, tags included.
 * 3. Calls are numbered from 0; a later one begins after all pieces of the earlier.
 */
export class ToolCallParser {
  /** Calls told so far. */
  calls = 0;
  private readonly options: ToolCallOptions;
  private block: CallBlock | null = null;
  private opened = false;
  private held = "";
  /** White space that is content only if content follows before the next call. */
  private blank = "";
  private hasText = false;
  private content = "";
  private deltas: ToolCallDelta[] = [];

  constructor(options: ToolCallOptions) {
    this.options = options;
  }

  push(text: string): CalledText {
    this.held += text;
    while (this.step());
    return this.take();
  }

  /** `ended`: the answer ended by itself, it was not cut off. */
  finish(ended: boolean): CalledText {
    if (this.block !== null) {
      this.use(this.block.finish(ended));
      this.block = null;
    } else {
      this.addText(this.opened ? this.options.tags.callOpen + this.held : this.held);
      this.held = "";
    }
    if (this.calls === 0) this.content += this.blank;
    this.blank = "";
    return this.take();
  }

  private take(): CalledText {
    const taken = { content: this.content, toolCalls: this.deltas };
    this.content = "";
    this.deltas = [];
    return taken;
  }

  /** Reads on; false when more text is needed. */
  private step(): boolean {
    if (this.block !== null) return this.readBlock(this.block);
    if (this.opened) return this.openBlock();
    const { callOpen } = this.options.tags;
    const at = this.held.indexOf(callOpen);
    const end = at >= 0 ? at : this.held.length - heldTail(this.held, [callOpen]);
    this.addText(this.held.slice(0, end));
    this.held = this.held.slice(at >= 0 ? end + callOpen.length : end);
    this.opened = at >= 0;
    return this.opened;
  }

  private openBlock(): boolean {
    const first = this.held.trimStart()[0];
    if (first === undefined) return false;
    const { tags, tools, unseal } = this.options;
    const schemaOf = (name: string) => tools.find((tool) => tool.function.name === name)?.function.parameters;
    this.block = first === "{" ? new JsonCallBlock(tags, unseal) : new XmlCallBlock(tags, unseal, schemaOf);
    this.opened = false;
    return true;
  }

  private readBlock(block: CallBlock): boolean {
    const text = this.held;
    this.held = "";
    const step = block.push(text);
    this.use(step);
    if (step.rest === null) return false;
    this.held = step.rest;
    this.block = null;
    return true;
  }

  private use(step: BlockStep): void {
    for (const piece of step.pieces) {
      if ("name" in piece) this.beginCall(piece.name);
      else this.argue(piece.arguments);
    }
    this.addText(step.content);
  }

  private beginCall(name: string): void {
    this.blank = "";
    this.hasText = false;
    this.deltas.push({ index: this.calls++, id: this.options.newCallId(), name, arguments: "" });
  }

  private argue(piece: string): void {
    const last = this.deltas.at(-1);
    if (last === undefined) this.deltas.push({ index: this.calls - 1, id: null, name: null, arguments: piece });
    else this.deltas[this.deltas.length - 1] = { ...last, arguments: last.arguments + piece };
  }

  private addText(text: string): void {
    if (this.hasText) this.content += text;
    else if (text.trim() === "") this.blank += text;
    else {
      this.content += this.blank + text;
      this.blank = "";
      this.hasText = true;
    }
  }
}
