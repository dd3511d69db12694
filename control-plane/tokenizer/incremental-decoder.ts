import type { Tokenizer } from "./tokenizer.ts";

const lossy = new TextDecoder("utf-8", { ignoreBOM: true });
const NOTHING = new Uint8Array();

/**
 * Owns the bytes of a character that tokens have begun and not finished. push* -> finish.
 *
 * 1. The pieces joined are the text of all tokens, however these are split into pushes.
 * 2. A piece never ends inside a character: cut bytes wait for the next token; at the end they become U+FFFD.
 *
 * With `markers: "sealed"` marker tokens come in their sealed form (see `Markers`), else as they are spelled.
 */
export class IncrementalDecoder {
  private readonly tokenizer: Tokenizer;
  private readonly sealed: boolean;
  private cut: Uint8Array = NOTHING;

  constructor(tokenizer: Tokenizer, markers: "spelled" | "sealed" = "spelled") {
    this.tokenizer = tokenizer;
    this.sealed = markers === "sealed";
  }

  /** Text that became final. Ids outside the vocabulary stand for nothing. */
  push(tokens: ArrayLike<number>): string {
    let text = "";
    for (let i = 0; i < tokens.length; i++) text += this.next(tokens[i]!);
    return text;
  }

  /** The rest: U+FFFD for a cut character. */
  finish(): string {
    const rest = this.cut.length === 0 ? "" : lossy.decode(this.cut);
    this.cut = NOTHING;
    return rest;
  }

  private next(id: number): string {
    if (this.sealed) {
      const marker = this.tokenizer.markers.sealedOf(id);
      if (marker !== undefined) return this.finish() + marker;
    }
    if (this.cut.length === 0) {
      const whole = this.tokenizer.wholeText(id);
      if (whole !== null) return whole;
    }
    const bytes = this.tokenizer.tokenBytes(id);
    const all = new Uint8Array(this.cut.length + bytes.length);
    all.set(this.cut);
    all.set(bytes, this.cut.length);
    const end = endOfWholeCharacters(all);
    this.cut = all.subarray(end);
    return lossy.decode(all.subarray(0, end));
  }
}

/** Where the last character begins if its bytes may go on, else the length. */
function endOfWholeCharacters(bytes: Uint8Array): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back]!;
    if ((byte & 0xc0) === 0x80) continue;
    const needs = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return needs > back ? bytes.length - back : bytes.length;
  }
  return bytes.length;
}
