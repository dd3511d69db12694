import { type Answer, stream } from "./client.ts";

interface StormOptions {
  readonly url: string;
  readonly requests: number;
  readonly clients: number;
  readonly seed: number;
  /** Share of requests that are cut by the client at a random moment. */
  readonly cutShare: number;
  readonly onRequest?: (number: number) => void | Promise<void>;
}

export interface StormReport {
  readonly finished: number;
  /** Requests the client itself cut. */
  readonly cut: number;
  /** Requests the client did not cut and that did not end as they should, in words. */
  readonly failures: readonly string[];
}

/** A small generator with a seed (mulberry32), so that a failing storm can be repeated. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * Many streaming requests of random lengths from a number of clients, some of which leave: before the first token,
 * after some chunks, or after a random time. Ends when every request has ended.
 */
export async function storm(options: StormOptions): Promise<StormReport> {
  const random = seeded(options.seed);
  let next = 0;
  let finished = 0;
  let cut = 0;
  const failures: string[] = [];

  const one = async (number: number): Promise<void> => {
    const promptWords = 1 + Math.floor(random() * 120);
    const prompt = Array.from({ length: promptWords }, () => `w${Math.floor(random() * 50)}`).join(" ");
    const maxTokens = 1 + Math.floor(random() * 60);
    const leaves = random() < options.cutShare;
    const afterChunks = leaves && random() < 0.6 ? Math.floor(random() * 10) : null;
    const afterMs = leaves && afterChunks === null ? random() * 300 : null;
    const abort = new AbortController();
    const timer = afterMs === null ? null : setTimeout(() => abort.abort(), afterMs);
    const stuck = setTimeout(() => abort.abort(new Error("stuck")), 120_000);
    let left = false;
    abort.signal.addEventListener("abort", () => {
      left = true;
    });
    try {
      const answer: Answer = await stream(
        options.url,
        "/v1/completions",
        { model: "nano", prompt, max_tokens: maxTokens, min_tokens: maxTokens, temperature: 0.8, seed: number },
        {
          signal: abort.signal,
          onChunk: (soFar) => {
            if (afterChunks !== null && soFar.chunks > afterChunks) abort.abort();
          },
        },
      );
      const right = answer.error === null && answer.ended && answer.usage?.completion_tokens === maxTokens;
      if (right) finished++;
      else if (left) cut++;
      else
        failures.push(
          `request ${number}: ${JSON.stringify({ ...answer, headers: undefined, content: answer.content.length })}`,
        );
    } catch (error) {
      if (left && (abort.signal.reason as Error).message !== "stuck") cut++;
      else failures.push(`request ${number}: ${error instanceof Error ? error.message : String(error)}`);
    } finally {
      if (timer !== null) clearTimeout(timer);
      clearTimeout(stuck);
    }
  };

  const client = async (): Promise<void> => {
    while (next < options.requests) {
      const number = next++;
      await options.onRequest?.(number);
      await one(number);
    }
  };
  await Promise.all(Array.from({ length: options.clients }, client));
  return { finished, cut, failures };
}
