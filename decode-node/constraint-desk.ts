import { type Constraint, maskOf } from "#protocol/constraint.ts";
import type { Grammars, GrammarText } from "#service/grammar/grammars.ts";

/** Who follows grammars. */
export type TextGrammars = Pick<Grammars, "open" | "close">;

export interface ConstrainedText {
  /** A token that the text has gained. */
  push(token: number): void;
  close(): void;
}

export interface ConstraintListener {
  /** What the next token may be, a bit each. May be called before `begin` and `push` return. */
  allow(mask: Uint32Array): void;
  /** The text can't be followed: it must not go on here. */
  fail(sentence: string): void;
}

/** What a text is in the middle of. Of `prefix` and `suffix`: how many tokens of it are there. */
type Part =
  | { readonly kind: "free" }
  | { readonly kind: "prefix"; readonly at: number }
  | { readonly kind: "grammar" }
  | { readonly kind: "suffix"; readonly at: number };

/**
 * Owns what texts with a constraint may go on with. Free parts, prefixes and suffixes are decided here; a grammar is
 * followed by the grammar thread, and the text sits out meanwhile.
 *
 *   free -> prefix -> grammar -> suffix -> (one of the ends)
 *
 * 1 every token is answered by one mask, or by `fail`, until the text is closed
 * 2 the token behind a grammar is the first of the suffix, or one of the ends where there is none
 */
export class ConstraintDesk {
  readonly #grammars: TextGrammars;
  readonly #words: number;

  constructor(grammars: TextGrammars, vocabSize: number) {
    this.#grammars = grammars;
    this.#words = Math.ceil(vocabSize / 32);
  }

  close(): void {
    void this.#grammars.close();
  }

  /** Begins, or goes on with, a text of which `tokens` are there. */
  begin(constraint: Constraint, tokens: readonly number[], listener: ConstraintListener): ConstrainedText {
    const { part, inGrammar } = placeOf(constraint, tokens);
    const text = new Text(constraint, this.#grammars, this.#words, listener);
    text.enter(part, inGrammar);
    return text;
  }
}

class Text implements ConstrainedText {
  readonly #constraint: Constraint;
  readonly #grammars: TextGrammars;
  readonly #words: number;
  readonly #listener: ConstraintListener;
  #part: Part = { kind: "free" };
  #grammar: GrammarText | null = null;
  #closed = false;

  constructor(constraint: Constraint, grammars: TextGrammars, words: number, listener: ConstraintListener) {
    this.#constraint = constraint;
    this.#grammars = grammars;
    this.#words = words;
    this.#listener = listener;
  }

  push(token: number): void {
    if (this.#closed) return;
    const next = after(this.#constraint, this.#part, token);
    if (next.kind === "grammar" && this.#part.kind === "grammar") this.#grammar?.push(token);
    else this.enter(next, []);
  }

  close(): void {
    this.#closed = true;
    this.#leaveGrammar();
  }

  /** `inGrammar`: tokens of the grammar's text that are there. */
  enter(part: Part, inGrammar: readonly number[]): void {
    const { prefix, suffix, ends, grammar } = this.#constraint;
    this.#part = part;
    if (part.kind !== "grammar") this.#leaveGrammar();
    if (part.kind === "free") this.#allow(maskOf(this.#words, [...ends], "all but"));
    else if (part.kind === "prefix") this.#allow(maskOf(this.#words, [prefix[part.at]!], "only"));
    else if (part.kind === "suffix") {
      const next = part.at < suffix.length ? [suffix[part.at]!] : [...ends];
      this.#allow(maskOf(this.#words, next, "only"));
    } else {
      this.#grammar = this.#grammars.open(grammar, behind(this.#constraint), inGrammar, {
        onMask: (mask) => this.#allow(mask),
        onFault: (sentence) => this.#fail(sentence),
      });
    }
  }

  #allow(mask: Uint32Array): void {
    if (this.#closed) return;
    if (mask.every((word) => word === 0)) this.#fail("no token of the vocabulary can go on");
    else this.#listener.allow(mask);
  }

  #fail(sentence: string): void {
    if (this.#closed) return;
    this.close();
    this.#listener.fail(sentence);
  }

  #leaveGrammar(): void {
    this.#grammar?.close();
    this.#grammar = null;
  }
}

/** Tokens one of which ends the grammar's text. */
function behind({ suffix, ends }: Constraint): number[] {
  return suffix.length > 0 ? [suffix[0]!] : [...ends];
}

function first({ freeUntil, prefix }: Constraint): Part {
  if (freeUntil !== null) return { kind: "free" };
  return prefix.length > 0 ? { kind: "prefix", at: 0 } : { kind: "grammar" };
}

/** Where a text is after `token`. */
function after(constraint: Constraint, part: Part, token: number): Part {
  const { freeUntil, prefix, suffix } = constraint;
  if (part.kind === "free") return token === freeUntil ? first({ ...constraint, freeUntil: null }) : part;
  if (part.kind === "prefix") {
    return part.at + 1 < prefix.length ? { kind: "prefix", at: part.at + 1 } : { kind: "grammar" };
  }
  if (part.kind === "suffix") return { kind: "suffix", at: part.at + 1 };
  return suffix.length > 0 && token === suffix[0] ? { kind: "suffix", at: 1 } : part;
}

/** Where a text with these tokens is, and which of them are the grammar's. */
function placeOf(constraint: Constraint, tokens: readonly number[]): { part: Part; inGrammar: number[] } {
  let part = first(constraint);
  const inGrammar: number[] = [];
  for (const token of tokens) {
    const next = after(constraint, part, token);
    if (part.kind === "grammar" && next.kind === "grammar") inGrammar.push(token);
    part = next;
  }
  return { part, inGrammar };
}
