import type { PrefillDone, PrefillFailed } from "#protocol/prefill.ts";
import type { RequestHead } from "#protocol/request.ts";
import { parseTraceParent } from "#protocol/trace-context.ts";
import type { Clock } from "#service/clock.ts";
import type { SpanEvent } from "#service/tracing/span.ts";
import type { Tracing } from "#service/tracing/tracing.ts";

/** A long prompt has this many chunks in its span at most, the first ones. */
const MOST_CHUNKS = 64;
const MOST_PROMPTS = 1_024;

/**
 * The spans of traced prompts on this rank: what each waited, and computed in which chunks.
 *
 *   (chunk)* -> told
 *
 * Owns the chunks of prompts that are traced and not told yet; of those that nobody is told of the oldest go.
 */
export class PrefillSpans {
  readonly #tracing: Tracing | null;
  readonly #clock: Clock;
  readonly #chunks = new Map<string, SpanEvent[]>();

  constructor(tracing: Tracing | null, clock: Clock) {
    this.#tracing = tracing;
    this.#clock = clock;
  }

  /** A step computed so many rows of the prompt. */
  chunk(head: RequestHead, rows: number, computeMs: number): void {
    if (this.#tracing === null || head.trace === undefined) return;
    const chunks = this.#chunks.get(head.requestId) ?? [];
    this.#chunks.set(head.requestId, chunks);
    if (this.#chunks.size > MOST_PROMPTS) this.#chunks.delete(this.#chunks.keys().next().value!);
    const attributes = { "margay.rows": rows, "margay.compute_ms": computeMs };
    if (chunks.length < MOST_CHUNKS) chunks.push({ name: "chunk", atMs: this.#clock.now(), attributes });
  }

  /** The owner hears how it ended. */
  told(outcome: PrefillDone | PrefillFailed): void {
    const parent = this.#tracing === null ? null : parseTraceParent(outcome.head.trace);
    if (this.#tracing === null || parent === null) return;
    const { requestId, attempt } = outcome.head;
    const events = this.#chunks.get(requestId) ?? [];
    this.#chunks.delete(requestId);
    const endMs = this.#clock.now();
    const done = outcome.kind === "prefill-done" ? outcome : null;
    const startMs = endMs - (done?.computeMs ?? 0);
    const own = { traceId: parent.traceId, parentId: parent.spanId, kind: "internal" } as const;
    const named = { "margay.rank_id": outcome.rankId, "margay.request.id": requestId, "margay.attempt": attempt };
    if (done !== null) {
      const waited = { name: "wait on prefill rank", startMs: startMs - done.queueMs, endMs: startMs };
      this.#tracing.record({ ...own, ...waited, spanId: this.#tracing.newSpanId(), attributes: named });
    }
    this.#tracing.record({
      ...own,
      ...{ spanId: this.#tracing.newSpanId(), name: "compute prompt", startMs, endMs, events },
      attributes: { ...named, "margay.cached_tokens": done?.cachedTokens ?? null },
      error: outcome.kind === "prefill-failed" ? outcome.code : null,
    });
  }
}
