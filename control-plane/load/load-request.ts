import { namedRandom } from "../simulate/seeded-random.ts";
import type { TraceRequest } from "../simulate/trace-file.ts";

/** What is asked for: text of about so many tokens, answered by so many. */
export interface LoadRequest {
  /** When it is sent, milliseconds from the start; null: as soon as a client is free. */
  readonly atMs: number | null;
  readonly prompt: string;
  readonly maxTokens: number;
}

const SYLLABLES = ["ba", "do", "ke", "li", "mu", "na", "po", "ra", "se", "ti", "vo", "wa"] as const;
/** Tokens that one of Mooncake's hash ids stands for. */
const HASH_TOKENS = 512;

/** Words that no other seed gives: about one to two tokens each, whatever the tokenizer. */
function words(seed: string, count: number): string {
  const random = namedRandom(1, seed);
  const syllable = (): string => SYLLABLES[Math.floor(random.uniform() * SYLLABLES.length)]!;
  return Array.from({ length: count }, () => syllable() + syllable()).join(" ");
}

export interface LoadShape {
  readonly requests: number;
  readonly promptTokens: number;
  readonly maxTokens: number;
}

/** Requests for clients that each ask as soon as they are answered. Different prompts, so that no cache helps. */
export function closedLoop({ requests, promptTokens, maxTokens }: LoadShape, seed: string): readonly LoadRequest[] {
  return Array.from({ length: requests }, (_, i) => ({
    atMs: null,
    prompt: words(`${seed}-${i}`, promptTokens),
    maxTokens,
  }));
}

/** Requests that come by themselves, so many a second on average, at random (a Poisson process). */
export function openLoop(shape: LoadShape, perSecond: number, seed: string): readonly LoadRequest[] {
  const random = namedRandom(1, `${seed}-arrivals`);
  let atMs = 0;
  return closedLoop(shape, seed).map((request) => {
    const arrival = { ...request, atMs };
    atMs += (-Math.log(1 - random.uniform()) / perSecond) * 1000;
    return arrival;
  });
}

/**
 * A recorded trace, `speed` times as fast, lengths divided by `shrink`. Requests that shared blocks share their text: a
 * block's words come of its hash id.
 */
export function replay(
  trace: readonly TraceRequest[],
  { speed, shrink, requests }: { readonly speed: number; readonly shrink: number; readonly requests: number },
  seed: string,
): readonly LoadRequest[] {
  const shrunk = (tokens: number): number => Math.max(1, Math.round(tokens / shrink));
  return trace.slice(0, requests).map(({ atMs, promptTokens, outputTokens, hashIds = [] }, i) => {
    const blocks = hashIds.map((id, place) => {
      const tokens = Math.min(HASH_TOKENS, promptTokens - place * HASH_TOKENS);
      return words(`block-${id}`, shrunk(tokens));
    });
    const prompt = blocks.length > 0 ? blocks.join(" ") : words(`${seed}-${i}`, shrunk(promptTokens));
    return { atMs: atMs / speed, prompt, maxTokens: shrunk(outputTokens) };
  });
}
