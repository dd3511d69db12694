import type { StepLogprobs } from "#native";
import type { DecodeDone, ResumeReply, ResumeStream, TokenAcks, TokenBatch, TokenChunk } from "#protocol/decode.ts";
import type { GatewayId, RankId, RequestId } from "#protocol/ids.ts";
import type { Logprobs, RequestHead } from "#protocol/request.ts";
import type { Clock, Timer } from "#service/clock.ts";

/** How long the tail of an ended request waits for its acknowledgement, and how many tails do. */
const TAIL_MS = 30_000;
const MOST_TAILS = 4_096;
/**
 * Steps faster than this share a message. No screen shows more than 60 messages a second, and every process on the
 * way pays per message; a step of a large model takes longer and has its own.
 */
export const GATHER_MS = 16;

interface Outbox {
  readonly head: RequestHead;
  /** Alternatives per token; -1: no log-probabilities. */
  readonly topLogprobs: number;
  /** `seq` of the stream's first token. */
  readonly opened: number;
  /** `seq` of the first token kept; earlier ones were acknowledged. */
  base: number;
  readonly tokens: number[];
  readonly logprobs: StepLogprobs[];
  /** Tokens from this `seq` on were not published yet. */
  published: number;
  done: DecodeDone | null;
  expiry: Timer | null;
}

/** Sends a batch to its gateway; may be lost. */
export type PublishTokens = (owner: GatewayId, batch: TokenBatch) => void;

/**
 * Owns the tokens that left the engine and are not acknowledged.
 *
 *   emitted -> published (once, with its step or the few before it) -> acknowledged -> forgotten
 *                                    `-> asked for again -> told again
 *
 * 1 all that one step made for one gateway leaves in one message, at most GATHER_MS after the step
 * 2 a request's first token and its end leave with their step
 * 3 a token is kept until its gateway acknowledged it; a cancelled request's tokens are not
 * 4 an ended request is kept until its last token is acknowledged, TAIL_MS at most
 */
export class TokenStream {
  readonly #rankId: RankId;
  readonly #epoch: number;
  readonly #clock: Clock;
  readonly #publish: PublishTokens;
  readonly #outboxes = new Map<RequestId, Outbox>();
  /** Requests with something to publish, by gateway. */
  #dirty = new Map<GatewayId, Set<Outbox>>();
  #tails = 0;
  /** Something waits that may not: a first token or an end. */
  #urgent = false;
  #flushedMs = -GATHER_MS;
  #gathering: Timer | null = null;

  constructor(rankId: RankId, epoch: number, clock: Clock, publish: PublishTokens) {
    this.#rankId = rankId;
    this.#epoch = epoch;
    this.#clock = clock;
    this.#publish = publish;
  }

  /** Requests with tokens kept, running or ended. */
  get size(): number {
    return this.#outboxes.size;
  }

  /** Begins the stream of an attempt; `seq` is the place of its first token. Replaces an earlier attempt's. */
  open(head: RequestHead, seq: number, topLogprobs: number): void {
    this.#forget(head.requestId);
    const empty = { tokens: [], logprobs: [], done: null, expiry: null };
    this.#outboxes.set(head.requestId, { head, topLogprobs, opened: seq, base: seq, published: seq, ...empty });
  }

  emit(head: RequestHead, token: number, logprobs: StepLogprobs | null): void {
    const outbox = this.#find(head);
    if (outbox === null) return;
    if (outbox.published === outbox.opened) this.#urgent = true;
    outbox.tokens.push(token);
    if (outbox.topLogprobs >= 0 && logprobs !== null) outbox.logprobs.push(logprobs);
    this.#mark(outbox);
  }

  /** The last word on a request. */
  end(head: RequestHead, done: DecodeDone): void {
    const outbox = this.#find(head);
    if (outbox === null) return;
    outbox.done = done;
    this.#urgent = true;
    outbox.expiry = this.#clock.after(TAIL_MS, () => this.#forget(head.requestId));
    this.#mark(outbox);
    if (++this.#tails > MOST_TAILS) this.#forgetOldestTail();
  }

  /** A step is over: publishes now what may not wait, and the rest with it or GATHER_MS after the last publication. */
  stepped(): void {
    if (this.#dirty.size === 0 || this.#gathering !== null) {
      if (this.#urgent) this.flush();
      return;
    }
    const restMs = this.#flushedMs + GATHER_MS - this.#clock.monotonic();
    if (this.#urgent || restMs <= 0) this.flush();
    else this.#gathering = this.#clock.after(restMs, () => this.flush());
  }

  /** Publishes what was emitted and ended since the last time. */
  flush(): void {
    this.#gathering?.cancel();
    this.#gathering = null;
    this.#urgent = false;
    if (this.#dirty.size === 0) return;
    this.#flushedMs = this.#clock.monotonic();
    const dirty = this.#dirty;
    this.#dirty = new Map();
    for (const [owner, outboxes] of dirty) {
      const chunks: TokenChunk[] = [];
      for (const outbox of outboxes) {
        chunks.push(chunkOf(outbox, outbox.published));
        outbox.published = outbox.base + outbox.tokens.length;
      }
      if (chunks.length > 0)
        this.#publish(owner, { kind: "token-batch", rankId: this.#rankId, epoch: this.#epoch, chunks });
    }
  }

  acknowledge({ acks }: TokenAcks): void {
    for (const { requestId, attempt, seq } of acks) {
      const outbox = this.#outboxes.get(requestId);
      if (outbox === undefined || outbox.head.attempt !== attempt) continue;
      const count = Math.min(seq, outbox.published) - outbox.base;
      if (count > 0) {
        outbox.tokens.splice(0, count);
        outbox.logprobs.splice(0, count);
        outbox.base += count;
      }
      // A natural end travels with the last token; an end by error may be lost after all tokens were acknowledged.
      if (outbox.done?.finish && outbox.tokens.length === 0) this.#forget(requestId);
    }
  }

  resume({ head, seq }: ResumeStream): ResumeReply {
    const outbox = this.#find(head);
    if (outbox === null)
      return { kind: "refused", code: "unknown_request", detail: "no such stream", retryAfterMs: null };
    // What was missing may have come, and been acknowledged, after the question left.
    return { kind: "resumed", chunk: chunkOf(outbox, Math.max(seq, outbox.base)) };
  }

  /** Forgets an attempt without a word: it was cancelled, or its owner is gone. */
  drop(head: RequestHead): void {
    if (this.#find(head) !== null) this.#forget(head.requestId);
  }

  /** Ends all timers. */
  close(): void {
    this.#gathering?.cancel();
    for (const requestId of [...this.#outboxes.keys()]) this.#forget(requestId);
  }

  #find(head: RequestHead): Outbox | null {
    const outbox = this.#outboxes.get(head.requestId);
    return outbox?.head.attempt === head.attempt ? outbox : null;
  }

  #mark(outbox: Outbox): void {
    const { owner } = outbox.head;
    const marked = this.#dirty.get(owner);
    if (marked === undefined) this.#dirty.set(owner, new Set([outbox]));
    else marked.add(outbox);
  }

  #forget(requestId: RequestId): void {
    const outbox = this.#outboxes.get(requestId);
    if (outbox === undefined) return;
    this.#outboxes.delete(requestId);
    this.#dirty.get(outbox.head.owner)?.delete(outbox);
    outbox.expiry?.cancel();
    if (outbox.done !== null) this.#tails--;
  }

  #forgetOldestTail(): void {
    for (const [requestId, outbox] of this.#outboxes) {
      if (outbox.done === null) continue;
      this.#forget(requestId);
      return;
    }
  }
}

/** Everything kept from `seq` on. */
function chunkOf(outbox: Outbox, seq: number): TokenChunk {
  const from = seq - outbox.base;
  const tokens = Int32Array.from(outbox.tokens.slice(from));
  const logprobs = outbox.topLogprobs < 0 ? null : packLogprobs(outbox.logprobs.slice(from), outbox.topLogprobs);
  const { requestId, attempt } = outbox.head;
  return { requestId, attempt, seq, tokens, logprobs, done: outbox.done };
}

function packLogprobs(rows: readonly StepLogprobs[], width: number): Logprobs {
  const chosen = Float32Array.from(rows, (row) => row.chosen);
  const ids = new Int32Array(rows.length * width);
  const values = new Float32Array(rows.length * width);
  for (const [i, row] of rows.entries()) {
    ids.set(row.ids.subarray(0, width), i * width);
    values.set(row.values.subarray(0, width), i * width);
  }
  return { chosen, width, ids, values };
}
