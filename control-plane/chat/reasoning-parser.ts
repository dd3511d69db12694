import { heldTail } from "./held-tail.ts";
import type { Tags } from "./tags.ts";

/** A piece of an answer, told apart. */
export interface ReasonedText {
  readonly reasoning: string;
  readonly content: string;
}

/**
 * Tells reasoning from content in text that arrives in pieces.
 *
 *   undecided -> opening -> opened -> reasoning -> closed -> content
 *   (a prompt that opened the reasoning starts at opening; an answer that does not begin with the tag goes to content)
 *
 * 1. What comes out does not depend on how the text is cut.
 * 2. One newline after the opening tag, before the closing tag and after it belongs to the tags.
 * 3. Reasoning that is never closed is reasoning to the end.
 * 4. Only the first pair of tags counts; further ones are text.
 */
export class ReasoningParser {
  private state: "undecided" | "opening" | "opened" | "reasoning" | "closed" | "content";
  private readonly tags: Tags;
  private held = "";

  constructor(tags: Tags, startsInReasoning: boolean) {
    this.tags = tags;
    this.state = startsInReasoning ? "opening" : "undecided";
  }

  push(text: string): ReasonedText {
    if (this.state === "content") return { reasoning: "", content: text };
    this.held += text;
    this.open();
    let reasoning = "";
    if (this.state === "reasoning") reasoning = this.reason();
    if (this.state === "closed" && this.held !== "") {
      if (this.held.startsWith("\n")) this.held = this.held.slice(1);
      this.state = "content";
    }
    return { reasoning, content: this.state === "content" ? this.takeHeld() : "" };
  }

  finish(): ReasonedText {
    const rest = this.takeHeld();
    if (this.state === "undecided") return { reasoning: "", content: rest };
    const opened = this.state === "opening" && rest.startsWith("\n") ? rest.slice(1) : rest;
    return { reasoning: opened.endsWith("\n") ? opened.slice(0, -1) : opened, content: "" };
  }

  /** Decides how the text begins, as far as it is known. */
  private open(): void {
    const { thinkOpen } = this.tags;
    if (this.state === "undecided" || this.state === "opening") {
      const begun = this.held.trimStart();
      if (begun.startsWith(thinkOpen)) {
        this.held = begun.slice(thinkOpen.length);
        this.state = "opened";
      } else if (thinkOpen.startsWith(begun)) {
        return;
      } else {
        this.state = this.state === "undecided" ? "content" : "opened";
      }
    }
    if (this.state === "opened" && this.held !== "") {
      if (this.held.startsWith("\n")) this.held = this.held.slice(1);
      this.state = "reasoning";
    }
  }

  private reason(): string {
    const { thinkClose } = this.tags;
    const at = this.held.indexOf(thinkClose);
    if (at >= 0) {
      const reasoning = this.held.slice(0, at);
      this.held = this.held.slice(at + thinkClose.length);
      this.state = "closed";
      return reasoning.endsWith("\n") ? reasoning.slice(0, -1) : reasoning;
    }
    let end = this.held.length - heldTail(this.held, [thinkClose]);
    if (this.held[end - 1] === "\n") end--;
    const reasoning = this.held.slice(0, end);
    this.held = this.held.slice(end);
    return reasoning;
  }

  private takeHeld(): string {
    const held = this.held;
    this.held = "";
    return held;
  }
}
