/** One generated token with the likeliest candidates of its place, as the chat API tells them. */
export interface TokenRow {
  readonly token: string;
  readonly logprob: number;
  readonly top_logprobs: readonly { readonly token: string; readonly logprob: number }[];
}

/** Where two greedy answers to one prompt part, and how close the two candidates are there by the first one's numbers. */
export interface Parting {
  readonly at: number;
  readonly tokens: readonly [string, string];
  readonly gap: number;
}

/** What a row says for an answer that ends here: end tokens have no row of their own. */
const END = "</longcat_s>";

/** How often two backends may differ, and how far apart their numbers are where they do not. */
export interface Comparison {
  /**
   * Difference of the log-probabilities of the same token after the same prefix that 99 of 100 tokens stay below; in the
   * others rounding may have turned the choice of an expert, and such a leap excuses no other answer.
   */
  readonly noise: number;
  /** The same for 19 of 20. */
  readonly usualNoise: number;
  readonly largest: number;
  readonly tokens: number;
  readonly partings: readonly (Parting & { readonly prompt: number })[];
}

/** Compares the greedy answers of two backends, prompt by prompt. */
export function compareAnswers(
  reference: readonly (readonly TokenRow[])[],
  other: readonly (readonly TokenRow[])[],
): Comparison {
  const differences: number[] = [];
  let tokens = 0;
  const partings: (Parting & { prompt: number })[] = [];
  for (const [prompt, rows] of reference.entries()) {
    const others = other[prompt]!;
    let at = 0;
    for (; at < Math.max(rows.length, others.length); at++) {
      const mine = rows[at];
      const its = others[at];
      // The numbers of the parting itself follow the same prefix, so they belong to the noise as well.
      if (mine && its) differences.push(rowDifference(mine, its));
      if (mine?.token !== its?.token) break;
    }
    tokens += at;
    if (at < Math.max(rows.length, others.length)) partings.push({ prompt, ...partingOf(rows[at], others[at], at) });
  }
  differences.sort((a, b) => a - b);
  const quantile = (share: number) => differences[Math.floor((differences.length - 1) * share)] ?? 0;
  return { noise: quantile(0.99), usualNoise: quantile(0.95), largest: quantile(1), tokens, partings };
}

/** Of the two likeliest tokens: only they decide a greedy answer. */
function rowDifference(a: TokenRow, b: TokenRow): number {
  let most = 0;
  for (const { token, logprob } of a.top_logprobs.slice(0, 2)) {
    const same = b.top_logprobs.find((candidate) => candidate.token === token);
    if (same) most = Math.max(most, Math.abs(same.logprob - logprob));
  }
  return most;
}

function partingOf(mine: TokenRow | undefined, its: TokenRow | undefined, at: number): Parting {
  const tokens = [mine?.token ?? END, its?.token ?? END] as const;
  // An answer that has ended tells no candidates; then the other's numbers do.
  const candidates = (mine ?? its)!.top_logprobs;
  const [first, second] = tokens.map((token) => candidates.find((candidate) => candidate.token === token)?.logprob);
  return { at, tokens, gap: first === undefined || second === undefined ? Infinity : Math.abs(first - second) };
}

/** Asks for a chat answer at temperature 0 and returns a row for each of its tokens. Throws on any error. */
export async function greedyRows(url: string, body: Readonly<Record<string, unknown>>): Promise<readonly TokenRow[]> {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, temperature: 0, logprobs: true, top_logprobs: 5 }),
  });
  const answer = (await response.json()) as {
    readonly error?: { readonly message: string };
    readonly choices: readonly { readonly logprobs: { readonly content: readonly TokenRow[] } }[];
  };
  if (answer.error) throw new Error(answer.error.message);
  return answer.choices[0]!.logprobs.content;
}

/** Runs `work` over all items, `width` at a time; results in the order of the items. */
export async function inParallel<T, R>(
  items: readonly T[],
  width: number,
  work: (item: T, index: number) => Promise<R>,
): Promise<readonly R[]> {
  const results: R[] = new Array(items.length);
  let next = 0;
  const lane = async (): Promise<void> => {
    while (next < items.length) {
      const index = next++;
      results[index] = await work(items[index]!, index);
    }
  };
  await Promise.all(Array.from({ length: width }, lane));
  return results;
}
