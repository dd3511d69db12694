import { argumentJson, argumentKind } from "./argument-value.ts";
import { type BlockStep, type CallBlock, type CallPiece, calledName } from "./call-block.ts";
import { firstTag, heldTail } from "./held-tail.ts";
import type { Tags } from "./tags.ts";

/** No function name is longer, white space around it included. */
const MAX_NAME = 256;

/**
 * A call written as a name and key-value pairs, handed out while it arrives.
 *
 *   name -> between -> key -> afterKey -> value -> between ... -> done
 *   name -> refused (what begins like no name) -> done
 *
 * 1. The call is told with its name; each argument follows when its value closes, a string's text as it comes.
 * 2. The pieces of a closed call are a valid JSON object. A value that lacks its closing tag ends with the block.
 * 3. Nothing is lost: text that is neither name, key, value nor white space goes back to the content.
 * 4. A call that is cut off keeps its arguments unfinished, as no JSON: nobody can take it for a whole one. Where the
 *    answer ended by itself the block ends there too.
 */
export class XmlCallBlock implements CallBlock {
  private state: "name" | "between" | "key" | "afterKey" | "value" | "refused" | "done" = "name";
  private readonly tags: Tags;
  private readonly unseal: (text: string) => string;
  private readonly schemaOf: (name: string) => unknown;
  private schema: unknown = null;
  private held = "";
  private key = "";
  private members = 0;
  private pieces: CallPiece[] = [];
  private content = "";

  /** `schemaOf` gives the JSON schema of a function's parameters, null for an unknown one. */
  constructor(tags: Tags, unseal: (text: string) => string, schemaOf: (name: string) => unknown) {
    this.tags = tags;
    this.unseal = unseal;
    this.schemaOf = schemaOf;
  }

  push(text: string): BlockStep {
    this.held += text;
    while (this.state !== "done" && this.step());
    return this.take(this.state === "done" ? this.held : null);
  }

  finish(ended: boolean): BlockStep {
    const { callOpen, callClose, keyOpen, keyClose } = this.tags;
    const unnamed = this.state === "name" || this.state === "refused";
    if (ended && !unnamed) return { ...this.push(callClose), rest: "" };
    if (this.state === "name") this.content += callOpen + this.held;
    else if (this.state === "key") this.content += keyOpen + this.held;
    else if (this.state === "afterKey") this.content += keyOpen + this.key + keyClose + this.held;
    else if (this.state === "value") this.cutValue();
    else if (this.held.trim() !== "") this.content += this.held;
    this.state = "done";
    return this.take("");
  }

  private take(rest: string | null): BlockStep {
    const step = { pieces: this.pieces, content: this.content, rest };
    this.pieces = [];
    this.content = "";
    return step;
  }

  /** Reads as far as the next tag; false when more text is needed. */
  private step(): boolean {
    switch (this.state) {
      case "name":
        return this.readName();
      case "between":
        return this.readBetween();
      case "key":
        return this.readKey();
      case "afterKey":
        return this.readAfterKey();
      case "value":
        return this.readValue();
      case "refused":
        return this.readRefused();
      case "done":
        return false;
    }
  }

  private readName(): boolean {
    const { callOpen, callClose, keyOpen } = this.tags;
    const lead = this.held.length - this.held.trimStart().length;
    const found = firstTag(this.held.slice(lead), ["\n", keyOpen, callClose, callOpen]);
    if (found === null && this.held.length <= MAX_NAME) return false;
    const name = found === null || found.tag === callOpen ? null : calledName(this.held.slice(lead, lead + found.at));
    if (name === null) {
      this.content += callOpen;
      this.state = "refused";
      return true;
    }
    this.held = this.held.slice(lead + found!.at);
    this.schema = this.schemaOf(name);
    this.pieces.push({ name });
    this.state = "between";
    return true;
  }

  private readBetween(): boolean {
    const { callOpen, callClose, keyOpen } = this.tags;
    const found = firstTag(this.held, [keyOpen, callClose, callOpen]);
    if (found === null) return false;
    const text = this.held.slice(0, found.at);
    if (text.trim() !== "") this.content += text;
    this.held = this.held.slice(found.at + found.tag.length);
    if (found.tag === keyOpen) this.state = "key";
    else this.end(found.tag);
    return true;
  }

  private readKey(): boolean {
    const { callOpen, callClose, keyOpen, keyClose, valueOpen } = this.tags;
    const found = firstTag(this.held, [keyClose, valueOpen, callClose, callOpen]);
    if (found === null) return false;
    const text = this.held.slice(0, found.at);
    this.held = this.held.slice(found.at + found.tag.length);
    if (found.tag === callClose || found.tag === callOpen) {
      this.content += keyOpen + text;
      this.end(found.tag);
      return true;
    }
    this.key = this.unseal(text).trim();
    this.beginMember(found.tag === valueOpen);
    return true;
  }

  private readAfterKey(): boolean {
    const { callOpen, callClose, keyOpen, keyClose, valueOpen } = this.tags;
    const found = firstTag(this.held, [valueOpen, keyOpen, callClose, callOpen]);
    if (found === null) return false;
    const text = this.held.slice(0, found.at);
    if (found.tag !== valueOpen) {
      this.content += keyOpen + this.key + keyClose + (text.trim() === "" ? "" : text);
      this.held = this.held.slice(found.at);
      this.state = "between";
      return true;
    }
    if (text.trim() !== "") this.content += text;
    this.held = this.held.slice(found.at + valueOpen.length);
    this.beginMember(true);
    return true;
  }

  private beginMember(valueBegins: boolean): void {
    this.state = valueBegins ? "value" : "afterKey";
    if (!valueBegins) return;
    const kind = argumentKind(this.schema, this.key);
    this.argue(`${this.members++ === 0 ? "{" : ","}${JSON.stringify(this.key)}:${kind.onlyString ? '"' : ""}`);
  }

  private readValue(): boolean {
    const { callOpen, callClose, valueClose } = this.tags;
    const ends = [valueClose, callClose, callOpen];
    const kind = argumentKind(this.schema, this.key);
    if (kind.onlyString) {
      const tag = this.readUpTo(ends, (text) => this.argue(insideString(this.unseal(text))));
      if (tag === null) return false;
      this.argue('"');
      this.endValue(tag);
      return true;
    }
    const found = firstTag(this.held, ends);
    if (found === null) return false;
    this.argue(argumentJson(this.unseal(this.held.slice(0, found.at)), kind.types));
    this.held = this.held.slice(found.at + found.tag.length);
    this.endValue(found.tag);
    return true;
  }

  private endValue(tag: string): void {
    if (tag === this.tags.valueClose) this.state = "between";
    else this.end(tag);
  }

  private cutValue(): void {
    const text = this.unseal(this.held);
    this.argue(argumentKind(this.schema, this.key).onlyString ? insideString(text) : text);
  }

  private readRefused(): boolean {
    const { callOpen, callClose } = this.tags;
    const tag = this.readUpTo([callClose, callOpen], (text) => {
      this.content += text;
    });
    if (tag === null) return false;
    if (tag === callClose) this.content += callClose;
    else this.held = callOpen + this.held;
    this.state = "done";
    return true;
  }

  /** Gives `use` the text up to the first of `tags` and takes that tag away; null when none is there yet. */
  private readUpTo(tags: readonly string[], use: (text: string) => void): string | null {
    const found = firstTag(this.held, tags);
    const end = found?.at ?? this.held.length - heldTail(this.held, tags);
    if (end > 0) use(this.held.slice(0, end));
    this.held = this.held.slice(end + (found?.tag.length ?? 0));
    return found?.tag ?? null;
  }

  /** The block ends at its own closing tag, or where the next one opens. */
  private end(tag: string): void {
    if (tag === this.tags.callOpen) this.held = tag + this.held;
    this.close();
    this.state = "done";
  }

  private close(): void {
    this.argue(this.members === 0 ? "{}" : "}");
  }

  private argue(piece: string): void {
    if (piece !== "") this.pieces.push({ arguments: piece });
  }
}

/** JSON of a string's piece without the quotes. */
function insideString(text: string): string {
  return JSON.stringify(text).slice(1, -1);
}
