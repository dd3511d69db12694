/** Characters a marker may be sealed into: a pair of low surrogates, the first and the second from disjoint ranges. */
const FIRST = 0xdc00;
const SECOND = 0xde00;
const RANGE = 0x200;

const SEALED = /[\udc00-\uddff][\ude00-\udfff]/gu;

/**
 * Owns the marker tokens of a vocabulary: entries such as `<longcat_user>` that structure a conversation and are no text.
 *
 * Generated text travels with its markers *sealed*: each written as two lone low surrogates, which no UTF-8 decodes to.
 * So whoever looks for a marker finds exactly the tokens, never a spelling of one in plain letters (a model that quotes
 * `<longcat_tool_call>` from a user calls nothing), and no marker is ever cut between two pieces of text.
 *
 * 1. unseal(seal(text)) = text for every well-formed text.
 * 2. A sealed marker occurs in text only where `sealedOf` or `seal` put it.
 */
export class Markers {
  /** Token id of each marker, by its spelling. */
  readonly ids: ReadonlyMap<string, number>;
  private readonly sealedById = new Map<number, string>();
  private readonly sealedBySpelling = new Map<string, string>();
  private readonly spellings: readonly string[];
  /** Every proper beginning of a marker. */
  private readonly prefixes = new Set<string>();
  private readonly longestPrefix: number;
  private readonly pattern: RegExp | null;

  /** `ids` names each marker's token by its spelling of at least two characters. */
  constructor(ids: ReadonlyMap<string, number>) {
    this.ids = ids;
    this.spellings = [...ids.keys()];
    if (this.spellings.length > RANGE * RANGE) throw new RangeError(`${this.spellings.length} marker tokens`);
    this.spellings.forEach((spelling, i) => {
      const sealed = String.fromCharCode(FIRST + Math.floor(i / RANGE), SECOND + (i % RANGE));
      this.sealedById.set(ids.get(spelling)!, sealed);
      this.sealedBySpelling.set(spelling, sealed);
      for (let length = 1; length < spelling.length; length++) this.prefixes.add(spelling.slice(0, length));
    });
    this.longestPrefix = Math.max(0, ...this.spellings.map((spelling) => spelling.length - 1));
    this.pattern = anyOf(this.spellings);
  }

  /** A marker token in sealed form; undefined when the token is no marker. */
  sealedOf(id: number): string | undefined {
    return this.sealedById.get(id);
  }

  /** The form in which a tag is found in sealed text: sealed where it is a marker token, else its own letters. */
  tag(spelling: string): string {
    return this.sealedBySpelling.get(spelling) ?? spelling;
  }

  /** Replaces every spelled marker by its sealed form. */
  seal(text: string): string {
    const wellFormed = text.toWellFormed();
    if (this.pattern === null) return wellFormed;
    return wellFormed.replace(this.pattern, (spelling) => this.sealedBySpelling.get(spelling)!);
  }

  /** Spells every sealed marker. */
  unseal(text: string): string {
    if (text.isWellFormed()) return text;
    return text.replace(SEALED, (pair) => {
      return this.spellings[(pair.charCodeAt(0) - FIRST) * RANGE + pair.charCodeAt(1) - SECOND] ?? pair;
    });
  }

  /** True when `text` spells a marker, or ends in what may begin one: exactly what `breakUp` changes. */
  touches(text: string): boolean {
    return this.spells(text) || this.endsInPrefix(text);
  }

  /** Puts `breaker` behind the first character of every marker spelled in `text`, and behind an end that may begin one. */
  breakUp(text: string, breaker: string): string {
    let broken = text;
    // Breaking one spelling may leave another that overlapped it.
    while (this.pattern !== null && this.spells(broken)) {
      broken = broken.replace(this.pattern, (spelling) => {
        const first = String.fromCodePoint(spelling.codePointAt(0)!);
        return first + breaker + spelling.slice(first.length);
      });
    }
    return this.endsInPrefix(text) ? broken + breaker : broken;
  }

  private spells(text: string): boolean {
    return this.pattern !== null && text.search(this.pattern) >= 0;
  }

  private endsInPrefix(text: string): boolean {
    for (let length = Math.min(this.longestPrefix, text.length); length > 0; length--) {
      if (this.prefixes.has(text.slice(-length))) return true;
    }
    return false;
  }
}

/** Pattern that finds the longest of `spellings` at the leftmost place; null for none. */
export function anyOf(spellings: readonly string[]): RegExp | null {
  if (spellings.length === 0) return null;
  const longestFirst = spellings.toSorted((a, b) => b.length - a.length);
  return new RegExp(longestFirst.map((s) => s.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")).join("|"), "g");
}
