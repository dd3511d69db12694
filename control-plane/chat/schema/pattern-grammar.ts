/**
 * The strings that a regular expression finds something in, as EBNF of what stands between the quotes of a JSON string.
 * Understood: literals, classes, `.`, `\d \w \s`, groups, alternatives, `* + ? {m,n}`, and `^` and `$` at the ends of the
 * whole. Throws an `Error` whose message names what isn't.
 */
export function patternGrammar(pattern: string, anyCharacter: string): string {
  const reader = new PatternReader(pattern, anyCharacter);
  return reader.read();
}

/** Most repetitions of one quantifier. */
const MOST_REPEATS = 1_000;

/** Ranges of code points, both ends included. */
type Ranges = readonly (readonly [number, number])[];

const DIGITS: Ranges = [[0x30, 0x39]];
const WORDS: Ranges = [...DIGITS, [0x41, 0x5a], [0x5f, 0x5f], [0x61, 0x7a]];
/** White space that JSON need not escape. */
const SPACES: Ranges = [
  [0x20, 0x20],
  [0xa0, 0xa0],
];
const LAST = 0x10ffff;

class PatternReader {
  readonly #pattern: readonly string[];
  readonly #any: string;
  #at = 0;

  constructor(pattern: string, any: string) {
    this.#pattern = [...pattern];
    this.#any = any;
  }

  read(): string {
    const anchored = this.#take("^");
    const body = this.#alternatives();
    const closed = this.#take("$");
    if (this.#at < this.#pattern.length)
      throw new Error(`"${this.#pattern[this.#at]}" at character ${this.#at + 1} is not supported`);
    return [anchored ? "" : `${this.#any}*`, `(${body})`, closed ? "" : `${this.#any}*`]
      .filter((part) => part !== "")
      .join(" ");
  }

  #alternatives(): string {
    const found = [this.#sequence()];
    while (this.#take("|")) found.push(this.#sequence());
    return found.join(" | ");
  }

  #sequence(): string {
    const parts: string[] = [];
    for (let part = this.#repeated(); part !== null; part = this.#repeated()) parts.push(part);
    return parts.length === 0 ? '""' : parts.join(" ");
  }

  #repeated(): string | null {
    const atom = this.#atom();
    if (atom === null) return null;
    const sign = this.#peek();
    let times = "";
    if (sign === "*" || sign === "+" || sign === "?") {
      this.#at++;
      times = sign;
    } else if (sign === "{") times = this.#times();
    // What is matched is the same, lazy or not.
    if (times !== "") this.#take("?");
    return atom + times;
  }

  #times(): string {
    const rest = this.#pattern.slice(this.#at).join("");
    const match = /^\{(\d{1,6})(?:(,)(\d{1,6})?)?\}/.exec(rest);
    if (match === null) throw new Error(`"{" at character ${this.#at + 1} begins no repetition`);
    this.#at += match[0].length;
    const least = Number(match[1]);
    const most = match[2] === undefined ? least : match[3] === undefined ? null : Number(match[3]);
    if (Math.max(least, most ?? 0) > MOST_REPEATS) throw new Error(`a repetition is above ${MOST_REPEATS}`);
    if (most !== null && most < least) throw new Error(`the repetition ${match[0]} ends below its beginning`);
    return most === null ? `{${least},}` : `{${least},${most}}`;
  }

  #atom(): string | null {
    const sign = this.#peek();
    if (sign === undefined || sign === "|" || sign === ")") return null;
    if (sign === "$" && this.#at === this.#pattern.length - 1) return null;
    const place = this.#at++;
    if (sign === "(") return this.#group();
    if (sign === "[") return classOf(this.#class());
    if (sign === ".") return this.#any;
    if (sign === "\\") return classOf(this.#escape(false));
    if ("^$*+?{".includes(sign)) throw new Error(`"${sign}" at character ${place + 1} is not supported`);
    return classOf([pointRange(sign)]);
  }

  #group(): string {
    if (this.#take("?")) {
      if (!this.#take(":")) throw new Error(`"(?${this.#peek() ?? ""}" at character ${this.#at - 1} is not supported`);
    }
    const body = this.#alternatives();
    if (!this.#take(")")) throw new Error("a group is not closed");
    return `(${body})`;
  }

  #class(): Ranges {
    const inverted = this.#take("^");
    const ranges: (readonly [number, number])[] = [];
    for (let first = true; ; first = false) {
      const sign = this.#peek();
      if (sign === undefined) throw new Error("a class is not closed");
      this.#at++;
      if (sign === "]" && !first) break;
      const low = sign === "\\" ? this.#escape(true) : [pointRange(sign)];
      const next = this.#pattern[this.#at + 1];
      if (low.length === 1 && low[0]![0] === low[0]![1] && this.#peek() === "-" && next !== undefined && next !== "]") {
        this.#at++;
        const end = this.#pattern[this.#at++]!;
        const high = end === "\\" ? this.#escape(true) : [pointRange(end)];
        if (high.length !== 1 || high[0]![1] < low[0]![0])
          throw new Error("a range of a class ends below its beginning");
        ranges.push([low[0]![0], high[0]![1]]);
      } else ranges.push(...low);
    }
    return inverted ? without(ranges) : ranges;
  }

  #escape(inClass: boolean): Ranges {
    const sign = this.#pattern[this.#at++];
    if (sign === undefined) throw new Error("it ends in a backslash");
    if (sign === "d") return DIGITS;
    if (sign === "w") return WORDS;
    if (sign === "s") return SPACES;
    if (sign === "D") return without(DIGITS);
    if (sign === "W") return without(WORDS);
    if (sign === "u") {
      const code = /^[0-9a-fA-F]{4}/.exec(this.#pattern.slice(this.#at, this.#at + 4).join(""))?.[0];
      if (code === undefined) throw new Error("\\u needs four hexadecimal digits");
      this.#at += 4;
      return [[Number.parseInt(code, 16), Number.parseInt(code, 16)]];
    }
    if (/[a-zA-Z0-9]/.test(sign)) throw new Error(`"\\${sign}"${inClass ? " in a class" : ""} is not supported`);
    return [pointRange(sign)];
  }

  #peek(): string | undefined {
    return this.#pattern[this.#at];
  }

  #take(sign: string): boolean {
    if (this.#peek() !== sign) return false;
    this.#at++;
    return true;
  }
}

const pointRange = (sign: string): readonly [number, number] => [sign.codePointAt(0)!, sign.codePointAt(0)!];

/** All other code points. */
function without(ranges: Ranges): Ranges {
  const found: (readonly [number, number])[] = [];
  let next = 0;
  for (const [low, high] of [...ranges].sort((a, b) => a[0] - b[0])) {
    if (low > next) found.push([next, low - 1]);
    next = Math.max(next, high + 1);
  }
  if (next <= LAST) found.push([next, LAST]);
  return found;
}

/** Most characters beyond ASCII that a class may name. */
const MOST_NAMED = 64;

/**
 * One character as a JSON string spells it: most stand for themselves, quote and backslash are escaped. Of the characters
 * beyond ASCII there may be a few, or all: the grammar library knows no ranges of them.
 */
function classOf(ranges: Ranges): string {
  const has = (point: number) => ranges.some(([low, high]) => low <= point && point <= high);
  const ascii = Array.from({ length: 0x80 }, (_, point) => point);
  const plain = ascii.filter((point) => has(point) && point >= 0x20 && point !== 0x22 && point !== 0x5c);
  const few = beyondAscii(ranges);
  const lacking = beyondAscii(without(ranges));
  const ways: string[] = [];
  if (few !== null) {
    if (plain.length > 0) ways.push(`[${plain.map(spelled).join("")}]`);
    ways.push(...few.map((point) => `"${spelled(point)}"`));
  } else if (lacking?.length === 0) {
    const left = ascii.filter((point) => !plain.includes(point));
    ways.push(`[^${left.map(spelled).join("")}]`);
  } else throw new Error("of the characters beyond ASCII a class may have a few, or all");
  if (has(0x22)) ways.push('"\\\\\\""');
  if (has(0x5c)) ways.push('"\\\\\\\\"');
  if (ways.length === 0) throw new Error("a character that it asks for can't stand in a JSON string");
  return ways.length === 1 ? ways[0]! : `(${ways.join(" | ")})`;
}

/** The characters beyond ASCII, surrogates aside; null: they are many. */
function beyondAscii(ranges: Ranges): readonly number[] | null {
  const found: number[] = [];
  for (const [low, high] of ranges) {
    for (let point = Math.max(low, 0x80); point <= high; point++) {
      if (point >= 0xd800 && point < 0xe000) continue;
      if (found.push(point) > MOST_NAMED) return null;
    }
  }
  return found;
}

const spelled = (point: number): string => `\\U${point.toString(16).toUpperCase().padStart(8, "0")}`;
