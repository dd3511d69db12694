import type { z } from "zod";
import type { RankChoice, TimelineResponse } from "#protocol/timeline.ts";
import type { Choice, Way, WayAttempt } from "../flow/way.ts";

/** What became of a request, as it is told. */
export function timelineOf(way: Way): TimelineResponse {
  const since = (atMs: number | null): number | null => (atMs === null ? null : Math.max(0, atMs - way.beganMs));
  return {
    id: way.requestId,
    object: "request.timeline",
    model: way.model,
    created: way.beganMs / 1000,
    outcome: way.outcome ?? "running",
    trace_id: way.trace?.traceId ?? null,
    prompt_tokens: way.promptTokens,
    cached_tokens: way.attempts[0]?.prefilled?.cachedTokens ?? way.attempts[0]?.decode?.cachedTokens ?? 0,
    generated_tokens: way.generatedTokens,
    first_token_ms: since(way.firstTokenMs),
    total_ms: since(way.endedMs),
    retries: retriesOf(way),
    attempts: way.attempts.map((attempt) => ({
      attempt: attempt.attempt,
      outcome: attempt.failure ?? (attempt.endedMs === null ? "running" : "ok"),
      at_ms: since(attempt.beganMs)!,
      prefill: choice(attempt.prefill),
      decode: choice(attempt.decode),
      phases: phases(attempt, since),
      transfer: attempt.transfer,
      generated_tokens: attempt.generatedTokens,
    })),
  };
}

/** Placements that failed and were followed by another. */
export function retriesOf({ attempts }: Way): number {
  return Math.max(0, (attempts.at(-1)?.attempt ?? 0) - (attempts[0]?.attempt ?? 0));
}

/** Each from the end of what it waits for to its own; a phase that has not ended is not told. */
function phases(attempt: WayAttempt, since: (atMs: number | null) => number | null) {
  const { beganMs, placedMs, reservedMs, prefilledMs, startedMs, endedMs } = attempt;
  const spans = [
    ["queue", beganMs, placedMs],
    ["reserve", placedMs, reservedMs],
    ["prefill", attempt.prefill === null ? null : placedMs, prefilledMs],
    ["transfer", prefilledMs, startedMs],
    ["decode", startedMs, endedMs],
  ] as const;
  return spans.flatMap(([phase, fromMs, untilMs]) =>
    fromMs === null || untilMs === null ? [] : [{ phase, at_ms: since(fromMs)!, ms: Math.max(0, untilMs - fromMs) }],
  );
}

function choice(one: Choice | null): z.infer<typeof RankChoice> | null {
  if (one === null) return null;
  return {
    rank: one.rankId,
    cached_tokens: one.cachedTokens,
    requests: one.requests,
    max_requests: one.maxRequests,
    pending_tokens: one.pendingTokens,
    out_of: one.outOf,
  };
}
