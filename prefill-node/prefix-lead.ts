import { BLOCK_TOKENS } from "#protocol/kv.ts";

/** A prompt on the rank, as far as it is computed. */
export interface LeadingPrompt {
  readonly tokens: Int32Array;
  /** Rows that no settled step has computed. */
  readonly left: number;
  readonly phase: string;
}

/** An older prompt that computes the first `tokens` tokens of a newer one: whole blocks, which the newer one then shares. */
export interface Lead<P extends LeadingPrompt> {
  readonly prompt: P;
  readonly tokens: number;
}

/**
 * Whom a new prompt follows, of the `older` ones that are not computed yet: the one with most blocks in common beyond the
 * `cachedTokens` it has; null when there is none.
 *
 * Waiting is always cheaper: rows computed twice take from the same steps that both wait for, and the older prompt gets
 * at least half of each.
 */
export function findLead<P extends LeadingPrompt>(
  tokens: Int32Array,
  cachedTokens: number,
  older: readonly P[],
): Lead<P> | null {
  let best: Lead<P> | null = null;
  for (const prompt of older) {
    const common = commonTokens(prompt.tokens, tokens.subarray(0, -1));
    const blocks = Math.floor(common / BLOCK_TOKENS) * BLOCK_TOKENS;
    if (blocks > (best?.tokens ?? cachedTokens)) best = { prompt, tokens: blocks };
  }
  return best;
}

/** The leading prompt has computed what it shares, or never will. */
export function leadIsOver<P extends LeadingPrompt>({ prompt, tokens }: Lead<P>): boolean {
  if (prompt.phase === "waiting") return false;
  return prompt.phase !== "computing" || prompt.tokens.length - prompt.left >= tokens;
}

function commonTokens(a: Int32Array, b: Int32Array): number {
  const most = Math.min(a.length, b.length);
  let count = 0;
  while (count < most && a[count] === b[count]) count++;
  return count;
}
