/** A set of digit strings as EBNF. */
type Ebnf = string;

const digits = (low: string, high: string): Ebnf => (low === high ? `"${low}"` : `[${low}-${high}]`);
const anyDigits = (count: number): Ebnf => (count === 0 ? "" : count === 1 ? "[0-9]" : `[0-9]{${count}}`);
const join = (...parts: readonly Ebnf[]): Ebnf => parts.filter((part) => part !== "").join(" ");

/** Digit strings of equal length from `low` to `high`. */
function sameLength(low: string, high: string): Ebnf[] {
  const rest = low.length - 1;
  const [first, last] = [low[0]!, high[0]!];
  if (rest === 0) return [digits(first, last)];
  if (first === last) return sameLength(low.slice(1), high.slice(1)).map((tail) => join(`"${first}"`, tail));
  const found: Ebnf[] = [];
  let from = Number(first);
  let to = Number(last);
  if (!/^0*$/.test(low.slice(1))) {
    found.push(...sameLength(low.slice(1), "9".repeat(rest)).map((tail) => join(`"${from}"`, tail)));
    from++;
  }
  const whole = /^9*$/.test(high.slice(1));
  if (!whole) to--;
  if (from <= to) found.push(join(digits(String(from), String(to)), anyDigits(rest)));
  if (!whole) found.push(...sameLength("0".repeat(rest), high.slice(1)).map((tail) => join(`"${last}"`, tail)));
  return found;
}

/** Whole numbers from `low` (not negative) to `high`, without leading zeros; null: no bound. */
function fromTo(low: bigint, high: bigint | null): Ebnf[] {
  const [start, end] = [low.toString(), high?.toString() ?? null];
  if (end !== null && start.length === end.length) return low > high! ? [] : sameLength(start, end);
  if (end !== null && start.length > end.length) return [];
  const found = sameLength(start, "9".repeat(start.length));
  const longest = end?.length ?? start.length + 1;
  for (let length = start.length + 1; length < longest; length++) found.push(join("[1-9]", anyDigits(length - 1)));
  if (end === null) found.push(join("[1-9]", `[0-9]{${start.length},}`));
  else found.push(...sameLength(`1${"0".repeat(end.length - 1)}`, end));
  return found;
}

/**
 * Alternatives whose union is the whole numbers within the bounds, as JSON spells them; null is no bound. Empty: there is
 * none. Zero has no sign.
 */
export function wholeRange(low: bigint | null, high: bigint | null): readonly Ebnf[] {
  const positive = high !== null && high < 0n ? [] : fromTo(low === null || low < 0n ? 0n : low, high);
  if (low !== null && low >= 0n) return positive;
  const least = high !== null && high < 0n ? -high : 1n;
  const negative = fromTo(least, low === null ? null : -low).map((magnitude) => `"-" ${magnitude}`);
  return [...negative, ...positive];
}
