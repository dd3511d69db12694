import type { StartDecode, StartReply, TokenBatch } from "#protocol/decode.ts";
import type { RankId } from "#protocol/ids.ts";
import type { RequestHead } from "#protocol/request.ts";
import { parseTraceParent, type TraceContext } from "#protocol/trace-context.ts";
import type { Clock } from "#service/clock.ts";
import type { Tracing } from "#service/tracing/tracing.ts";

interface Decoding {
  readonly head: RequestHead;
  readonly parent: TraceContext;
  readonly startMs: number;
}

/**
 * The spans of traced requests on this rank: how their pages came, and how long they were decoded.
 *
 *   started -> (tokens) -> last word | forgotten
 *
 * Owns what it knows of traced requests between their start and their end.
 */
export class DecodeSpans {
  readonly #tracing: Tracing | null;
  readonly #clock: Clock;
  readonly #rankId: RankId;
  readonly #decoding = new Map<string, Decoding>();

  constructor(tracing: Tracing | null, clock: Clock, rankId: RankId) {
    this.#tracing = tracing;
    this.#clock = clock;
    this.#rankId = rankId;
  }

  /** Passes the answer on, and notes how the pages came. */
  async started({ head }: StartDecode, reply: Promise<StartReply>): Promise<StartReply> {
    const parent = this.#tracing === null ? null : parseTraceParent(head.trace);
    if (parent === null) return reply;
    const startMs = this.#clock.now();
    const told = await reply;
    const endMs = this.#clock.now();
    const came = told.kind === "started" ? { "margay.pages": told.pages, "margay.bytes": told.bytes } : {};
    if (told.kind === "started") this.#decoding.set(head.requestId, { head, parent, startMs: endMs });
    this.#record("take pages", head, parent, startMs, endMs, came, told.kind === "refused" ? told.code : null);
    return told;
  }

  /** Tokens leave; a last word among them ends a span. */
  sent(batch: TokenBatch): void {
    if (this.#decoding.size === 0) return;
    for (const { requestId, attempt, seq, tokens, done } of batch.chunks) {
      const decoding = this.#decoding.get(requestId);
      if (decoding === undefined || done === null || decoding.head.attempt !== attempt) continue;
      this.#decoding.delete(requestId);
      const { head, parent, startMs } = decoding;
      const made = {
        "margay.generated_tokens": seq + tokens.length,
        "margay.computed_tokens": done.computedTokens,
        "margay.accepted_drafts": done.acceptedDrafts,
      };
      this.#record("generate tokens", head, parent, startMs, this.#clock.now(), made, done.error);
    }
  }

  /** It was cancelled: it has no last word. */
  forget({ requestId }: RequestHead): void {
    const decoding = this.#decoding.get(requestId);
    if (decoding === undefined) return;
    this.#decoding.delete(requestId);
    const { head, parent, startMs } = decoding;
    this.#record("generate tokens", head, parent, startMs, this.#clock.now(), {}, "cancelled");
  }

  #record(
    name: string,
    { requestId, attempt }: RequestHead,
    parent: TraceContext,
    startMs: number,
    endMs: number,
    attributes: Readonly<Record<string, number>>,
    error: string | null,
  ): void {
    if (this.#tracing === null) return;
    const named = { "margay.rank_id": this.#rankId, "margay.request.id": requestId, "margay.attempt": attempt };
    this.#tracing.record({
      ...{ traceId: parent.traceId, parentId: parent.spanId, spanId: this.#tracing.newSpanId() },
      ...{ kind: "internal", name, startMs, endMs, error },
      attributes: { ...named, ...attributes },
    });
  }
}
