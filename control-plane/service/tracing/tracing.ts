import { formatTraceParent, parseTraceParent, type TraceContext } from "#protocol/trace-context.ts";
import type { Clock, Random, Timer } from "../clock.ts";
import type { Logger } from "../logger.ts";
import type { Metrics } from "../metrics.ts";
import { type Attribute, otlpRequest, type Span } from "./span.ts";

export interface TracingConfig {
  /** Of an OTLP collector over HTTP, without `/v1/traces`; null: nothing is traced. */
  readonly endpoint: string | null;
  /** Share of the requests that is traced where the caller has not decided; 0 to 1. */
  readonly sample: number;
}

export interface TracingParts {
  readonly config: TracingConfig;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly metrics: Metrics;
  /** Who makes these spans. */
  readonly resource: Readonly<Record<string, Attribute>>;
}

const SEND_EVERY_MS = 1_000;
const MOST_AT_ONCE = 512;
const MOST_HELD = 8_192;
const SEND_MS = 5_000;

/**
 * Decides what is traced, and owns the finished spans of this process until a collector has them.
 *
 *   (recorded -> held -> sent | dropped)*
 *
 * 1 without an endpoint nothing is traced, and a request costs one comparison
 * 2 a caller's decision (the flag of its `traceparent`) goes before the configured share
 * 3 at most MOST_HELD spans are held; what comes on top, and what a collector did not take, is dropped and counted
 * 4 one message to the collector is out at a time
 */
export class Tracing {
  readonly #parts: TracingParts;
  #held: Span[] = [];
  #timer: Timer | null = null;
  #sending: Promise<void> = Promise.resolve();
  #failing = false;

  constructor(parts: TracingParts) {
    this.#parts = parts;
  }

  get on(): boolean {
    return this.#parts.config.endpoint !== null;
  }

  /** The trace that a request with this header belongs to, and its caller's span; null: it is not traced. */
  admit(traceParent: unknown): { readonly traceId: string; readonly parentId: string | null } | null {
    if (!this.on) return null;
    const { random, config } = this.#parts;
    const caller = parseTraceParent(traceParent);
    if (caller !== null) return caller.sampled ? { traceId: caller.traceId, parentId: caller.spanId } : null;
    return random.uniform() < config.sample ? { traceId: random.hex(16), parentId: null } : null;
  }

  newSpanId(): string {
    return this.#parts.random.hex(8);
  }

  record(...spans: readonly Span[]): void {
    if (!this.on) return;
    const room = MOST_HELD - this.#held.length;
    this.#held.push(...spans.slice(0, room));
    if (spans.length > room) this.#count("dropped", spans.length - Math.max(0, room));
    this.#timer ??= this.#parts.clock.after(SEND_EVERY_MS, () => {
      this.#timer = null;
      this.#sending = this.#sending.then(() => this.#send());
    });
  }

  /** Sends what is held. */
  async close(): Promise<void> {
    this.#timer?.cancel();
    this.#timer = null;
    await this.#sending;
    await this.#send();
  }

  async #send(): Promise<void> {
    while (this.#held.length > 0) {
      const spans = this.#held.splice(0, MOST_AT_ONCE);
      const failure = await this.#post(JSON.stringify(otlpRequest(this.#parts.resource, spans)));
      this.#count(failure === null ? "sent" : "dropped", spans.length);
      if (failure !== null && !this.#failing)
        this.#parts.logger.warn(
          { reason: failure },
          "traces do not reach their collector; further failures are counted",
        );
      this.#failing = failure !== null;
    }
  }

  /** null, or why it failed. */
  async #post(body: string): Promise<string | null> {
    const { clock, config } = this.#parts;
    const patience = new AbortController();
    const timer = clock.after(SEND_MS, () => patience.abort(new Error("it did not answer in time")));
    try {
      const response = await fetch(`${config.endpoint}/v1/traces`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body,
        signal: patience.signal,
      });
      await response.arrayBuffer();
      return response.ok ? null : `its answer was ${response.status}`;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    } finally {
      timer.cancel();
    }
  }

  #count(outcome: "sent" | "dropped", spans: number): void {
    this.#parts.metrics.count("margay_trace_spans_total", { outcome }, spans);
  }
}

/** Field of a message's head under which a rank's spans find their place. */
export function tracedHead(context: TraceContext | null): { readonly trace?: string } {
  return context === null ? {} : { trace: formatTraceParent(context) };
}
