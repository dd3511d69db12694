import type { Limits } from "./key-file.ts";
import { type Amounts, untilFull } from "./token-bucket.ts";

/**
 * The headers by which OpenAI's clients know their limits. `tokens` is the limit on all tokens, else that on prompt
 * tokens, else that on generated ones; `reset` is the time until nothing of the limit is used.
 */
export function limitHeaders(limits: Limits, left: Amounts): Readonly<Record<string, string>> {
  const headers: Record<string, string> = {};
  const tell = (name: string, limit: number | null, left: number): void => {
    if (limit === null) return;
    // What was leased and what the bucket regained since may be more than it holds.
    const remaining = Math.min(left, limit);
    headers[`x-ratelimit-limit-${name}`] = String(limit);
    headers[`x-ratelimit-remaining-${name}`] = String(remaining);
    headers[`x-ratelimit-reset-${name}`] = durationOf(untilFull(remaining, limit));
  };
  const { requestsPerMinute, tokensPerMinute, inputTokensPerMinute, outputTokensPerMinute } = limits;
  tell("requests", requestsPerMinute, left.requests);
  if (tokensPerMinute !== null) tell("tokens", tokensPerMinute, left.total);
  else if (inputTokensPerMinute !== null) tell("tokens", inputTokensPerMinute, left.input);
  else tell("tokens", outputTokensPerMinute, left.output);
  tell("input-tokens", inputTokensPerMinute, left.input);
  tell("output-tokens", outputTokensPerMinute, left.output);
  return headers;
}

/** As OpenAI writes it: `6m0s`, `1.5s`, `12ms`. */
export function durationOf(ms: number): string {
  if (ms < 1_000) return `${Math.ceil(ms)}ms`;
  const seconds = Math.ceil(ms / 100) / 10;
  const minutes = Math.floor(seconds / 60);
  return minutes === 0 ? `${seconds}s` : `${minutes}m${Number((seconds % 60).toFixed(1))}s`;
}
