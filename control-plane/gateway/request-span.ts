import type { FastifyRequest } from "fastify";
import type { ErrorCode } from "#protocol/errors.ts";
import type { Generation } from "#protocol/request.ts";
import type { TraceContext } from "#protocol/trace-context.ts";
import type { Clock } from "#service/clock.ts";
import type { Attribute } from "#service/tracing/span.ts";
import type { Tracing } from "#service/tracing/tracing.ts";
import type { Settled } from "../flow/request-flow.ts";

/** `gen_ai.operation.name` by route; what is not named is a chat. */
const OPERATIONS: Readonly<Record<string, string>> = { "/v1/completions": "text_completion" };

/**
 * The span of one HTTP request, by OpenTelemetry's conventions for generative AI. It holds settings and counts, no text.
 *
 *   begun -> (first token) -> settled | failed -> ended
 */
export class RequestSpan implements TraceContext {
  readonly traceId: string;
  readonly spanId: string;
  readonly #parentId: string | null;
  readonly #tracing: Tracing;
  readonly #clock: Clock;
  readonly #startMs: number;
  readonly #beganMs: number;
  readonly #operation: string;
  readonly #attributes: Record<string, Attribute | null>;
  #error: ErrorCode | null = null;

  constructor(
    parts: { readonly tracing: Tracing; readonly clock: Clock },
    place: { readonly traceId: string; readonly parentId: string | null },
    about: { readonly operation: string; readonly model: string; readonly requestId: string },
  ) {
    this.#tracing = parts.tracing;
    this.#clock = parts.clock;
    this.traceId = place.traceId;
    this.#parentId = place.parentId;
    this.spanId = parts.tracing.newSpanId();
    this.#startMs = parts.clock.now();
    this.#beganMs = parts.clock.monotonic();
    this.#operation = about.operation;
    this.#attributes = {
      "gen_ai.operation.name": about.operation,
      "gen_ai.provider.name": "margay",
      "gen_ai.request.model": about.model,
      "gen_ai.response.model": about.model,
      "gen_ai.response.id": about.requestId,
    };
  }

  firstToken(seconds: number): void {
    this.#attributes["gen_ai.response.time_to_first_chunk"] = seconds;
  }

  settle(generations: readonly Generation[], settled: readonly Settled[], inputTokens: number): void {
    const sampling = generations[0]!.sampling;
    const sum = (count: (one: Settled) => number): number => settled.reduce((total, one) => total + count(one), 0);
    Object.assign(this.#attributes, {
      "gen_ai.request.choice.count": generations.length === 1 ? null : generations.length,
      "gen_ai.request.max_tokens": generations[0]!.maxNewTokens,
      "gen_ai.request.temperature": sampling.temperature,
      "gen_ai.request.top_p": sampling.topP,
      "gen_ai.response.finish_reasons": settled.map(({ finish }) => finish),
      "gen_ai.usage.input_tokens": inputTokens,
      "gen_ai.usage.output_tokens": sum(({ completionTokens }) => completionTokens),
      "gen_ai.usage.cache_read.input_tokens": sum(({ cachedTokens }) => cachedTokens),
      "margay.attempts": Math.max(...settled.map(({ attempts }) => attempts)),
    });
  }

  fail(code: ErrorCode): void {
    this.#error = code;
    this.#attributes["error.type"] = code;
  }

  end(): void {
    this.#tracing.record({
      ...{ traceId: this.traceId, spanId: this.spanId, parentId: this.#parentId, kind: "server" },
      name: `${this.#operation} ${this.#attributes["gen_ai.request.model"]}`,
      startMs: this.#startMs,
      endMs: this.#startMs + this.#clock.monotonic() - this.#beganMs,
      attributes: this.#attributes,
      error: this.#error,
    });
  }
}

/** null: the request is not traced. */
export function beginSpan(
  { tracing, clock }: { readonly tracing?: Tracing; readonly clock: Clock },
  request: FastifyRequest,
  requestId: string,
  model: string,
): RequestSpan | null {
  const place = tracing?.admit(request.headers.traceparent) ?? null;
  if (tracing === undefined || place === null) return null;
  const operation = OPERATIONS[request.routeOptions.url ?? ""] ?? "chat";
  return new RequestSpan({ tracing, clock }, place, { operation, model, requestId });
}
