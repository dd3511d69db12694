/** One stop string and how much of it the end of the text read so far matches. */
interface Candidate {
  readonly stop: string;
  /** fallback[k]: length of the longest proper prefix of the stop string that is a suffix of its first k + 1 characters. */
  readonly fallback: readonly number[];
  matched: number;
}

/**
 * Finds the first stop string in text that arrives in pieces. push* -> stopped, or push* -> finish.
 *
 * 1. The match that ends first wins, of two that end together the longer: the answer does not depend on how the text is
 *    cut into pieces.
 * 2. Text from the match on is never given out; text that cannot be part of a match is given out at once.
 * 3. After the match nothing is given out.
 */
export class StopMatcher {
  /** The stop string that was found. */
  found: string | null = null;
  private readonly candidates: readonly Candidate[];
  private held = "";

  /** `stops`: non-empty strings. */
  constructor(stops: readonly string[]) {
    if (stops.some((stop) => stop === "")) throw new RangeError("a stop string is empty");
    this.candidates = stops.map((stop) => ({ stop, fallback: fallbacksOf(stop), matched: 0 }));
  }

  get stopped(): boolean {
    return this.found !== null;
  }

  /** Text that is surely before any stop string. */
  push(text: string): { readonly text: string; readonly stopped: boolean } {
    if (this.stopped) return { text: "", stopped: true };
    if (this.candidates.length === 0) return { text, stopped: false };
    const all = this.held + text;
    for (let i = this.held.length; i < all.length; i++) {
      let longest = "";
      for (const candidate of this.candidates) {
        if (advance(candidate, all[i]!) && candidate.stop.length > longest.length) longest = candidate.stop;
      }
      if (longest === "") continue;
      this.found = longest;
      this.held = "";
      return { text: all.slice(0, i + 1 - longest.length), stopped: true };
    }
    const open = this.candidates.reduce((most, candidate) => Math.max(most, candidate.matched), 0);
    this.held = all.slice(all.length - open);
    return { text: all.slice(0, all.length - open), stopped: false };
  }

  /** What was held back and turned out to be no stop string. */
  finish(): string {
    const rest = this.held;
    this.held = "";
    return rest;
  }
}

/** Reads one more character; true when the stop string is complete. */
function advance(candidate: Candidate, character: string): boolean {
  const { stop, fallback } = candidate;
  let matched = candidate.matched;
  while (matched > 0 && stop[matched] !== character) matched = fallback[matched - 1]!;
  if (stop[matched] === character) matched++;
  candidate.matched = matched;
  return matched === stop.length;
}

function fallbacksOf(stop: string): readonly number[] {
  const fallback = [0];
  for (let i = 1; i < stop.length; i++) {
    let length = fallback[i - 1]!;
    while (length > 0 && stop[length] !== stop[i]) length = fallback[length - 1]!;
    fallback.push(stop[length] === stop[i] ? length + 1 : length);
  }
  return fallback;
}
