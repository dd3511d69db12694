import { wholeRange } from "./whole-range.ts";

interface Bound {
  readonly value: bigint;
  readonly exclusive: boolean;
}

/** What a number may be at least and at most; null: anything. */
export interface Bounds {
  readonly low: Bound | null;
  readonly high: Bound | null;
}

/** The tighter of the inclusive and the exclusive words of a schema; `refuse` is told a word that is no whole number. */
export function readBounds(schema: Readonly<Record<string, unknown>>, refuse: (word: string) => never): Bounds {
  const read = (inclusive: string, exclusive: string, isTighter: (a: bigint, b: bigint) => boolean): Bound | null => {
    const [a, b] = [inclusive, exclusive].flatMap((word) => {
      const value = schema[word];
      if (value === undefined) return [];
      if (typeof value !== "number" || !Number.isSafeInteger(value)) refuse(word);
      return [{ value: BigInt(value), exclusive: word === exclusive }];
    });
    if (a === undefined || b === undefined) return a ?? null;
    return isTighter(a.value, b.value) ? a : b;
  };
  return {
    low: read("minimum", "exclusiveMinimum", (a, b) => a > b),
    high: read("maximum", "exclusiveMaximum", (a, b) => a < b),
  };
}

/** Alternatives (EBNF) of the whole numbers within the bounds; empty: there is none. */
export function wholesWithin({ low, high }: Bounds): readonly string[] {
  const least = low === null ? null : low.value + (low.exclusive ? 1n : 0n);
  const most = high === null ? null : high.value - (high.exclusive ? 1n : 0n);
  return wholeRange(least, most);
}

/** Alternatives (EBNF) of the numbers within the bounds, without exponents. `part` is a rule: a fraction that isn't zero. */
export function numbersWithin({ low, high }: Bounds): readonly string[] {
  const [least, most] = [low?.value ?? null, high?.value ?? null];
  const ways = [...wholesWithin({ low, high })];
  // n.part lies between n and n + 1, -n.part between -n - 1 and -n.
  const up = wholeRange(least === null || least < 0n ? 0n : least, most === null ? null : most - 1n);
  ways.push(...up.map((whole) => `${whole} part`));
  if (least !== null && least >= 0n) return ways;
  const down = wholeRange(most === null || most > 0n ? 0n : -most, least === null ? null : -least - 1n);
  ways.push(...down.map((whole) => `"-" ${whole} part`));
  return ways;
}
