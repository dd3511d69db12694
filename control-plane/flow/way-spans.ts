import type { TraceContext } from "#protocol/trace-context.ts";
import type { Attribute, Span } from "#service/tracing/span.ts";
import type { Choice, Way, WayAttempt } from "./way.ts";

/**
 * The spans of a traced request, below its caller's: one per attempt, and in each its phases as far as it came. An attempt
 * after another one links to it, for it goes on from its tokens.
 */
export function spansOf(way: Way, newSpanId: () => string): readonly Span[] {
  return way.attempts.flatMap((attempt, i) => [
    attemptSpan(way, attempt, way.attempts[i - 1]?.trace ?? null),
    ...phasesOf(attempt).map((phase) => ({
      ...phase,
      ...{
        traceId: attempt.trace!.traceId,
        spanId: newSpanId(),
        parentId: attempt.trace!.spanId,
        kind: "internal" as const,
      },
    })),
  ]);
}

function attemptSpan(way: Way, attempt: WayAttempt, before: TraceContext | null): Span {
  return {
    ...attempt.trace!,
    parentId: way.trace!.spanId,
    name: attempt.attempt === 0 ? "attempt" : "attempt after a move",
    kind: "internal",
    startMs: attempt.beganMs,
    endMs: attempt.endedMs ?? attempt.beganMs,
    attributes: {
      "margay.request.id": way.requestId,
      "margay.attempt": attempt.attempt,
      "margay.generated_tokens": attempt.generatedTokens,
    },
    links: before === null ? [] : [before],
    error: attempt.failure,
  };
}

type Phase = Pick<Span, "name" | "startMs" | "endMs" | "attributes">;

/** What the attempt's time was spent on; the last phase that began lasts to its end. */
function phasesOf(attempt: WayAttempt): readonly Phase[] {
  const endMs = attempt.endedMs ?? attempt.beganMs;
  const { beganMs, placedMs, prefilledMs, startedMs, prefill, decode, prefilled, transfer } = attempt;
  const phase = (name: string, fromMs: number | null, untilMs: number | null, attributes: Phase["attributes"]) =>
    fromMs === null ? [] : [{ name, startMs: fromMs, endMs: untilMs ?? endMs, attributes }];
  return [
    ...phase("queue", beganMs, placedMs, {}),
    ...phase("placement", placedMs, placedMs, { ...told("decode", decode), ...told("prefill", prefill) }),
    ...phase("reserve", placedMs, attempt.reservedMs, { "margay.rank_id": decode?.rankId ?? null }),
    ...(prefill === null
      ? []
      : phase("prefill", placedMs, prefilledMs, {
          "margay.rank_id": prefilled?.rankId ?? prefill.rankId,
          "margay.cached_tokens": prefilled?.cachedTokens ?? null,
        })),
    ...phase("transfer", prefilledMs, startedMs, {
      "margay.pages": transfer?.pages ?? null,
      "margay.bytes": transfer?.bytes ?? null,
      "margay.transfer_ms": transfer?.ms ?? null,
    }),
    ...phase("decode", startedMs, endMs, { "margay.rank_id": decode?.rankId ?? null }),
  ];
}

function told(role: string, choice: Choice | null): Readonly<Record<string, Attribute>> {
  if (choice === null) return {};
  return {
    [`margay.${role}.rank`]: choice.rankId,
    [`margay.${role}.cached_tokens`]: choice.cachedTokens,
    [`margay.${role}.requests`]: choice.requests,
    [`margay.${role}.pending_tokens`]: choice.pendingTokens,
    [`margay.${role}.out_of`]: choice.outOf,
  };
}
