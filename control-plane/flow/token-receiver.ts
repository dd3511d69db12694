import type { DecodeDone, TokenChunk } from "#protocol/decode.ts";
import { MargayError } from "#protocol/errors.ts";
import type { Logprobs } from "#protocol/request.ts";

/** Room for so many tokens at first, doubled as they come: an array of 64 bytes needs no memory of its own beside it. */
const FIRST_TOKENS = 16;

/** What a receiver does with tokens and trouble. */
export interface ReceiverSink {
  /** False: nobody is there to be told further tokens. */
  wanted(): boolean;
  onTokens(tokens: Int32Array, logprobs: Logprobs | null): void;
  /** Tokens are missing: ask for everything from `seq` on. */
  onGap(seq: number): void;
  onDuplicate(): void;
  /** A decode rank's last word in an attempt, once. */
  onDone(done: DecodeDone): void;
}

/**
 * Owns the order of one request's generated tokens, whoever sends them: each place is delivered once, in order.
 *
 *   (listen -> receiving -> done)*        one round per attempt
 *
 * T1 `next` is the number of tokens delivered; a chunk below it is cut or dropped, one above it is dropped and asked again
 * T2 one question per sender is out at a time: what comes while it is unanswered is in the answer
 * T3 the last word of one attempt says nothing about the next
 * T4 an answer to a question of an attempt that is over is not taken: the request may have ended with it
 * T5 tokens that are not wanted any more are neither delivered nor asked for, and count as received; the last word is heard
 */
export class TokenReceiver {
  readonly #sink: ReceiverSink;
  #done = openEnd();
  #tokens: Int32Array;
  #next = 0;
  /** End of what came unwanted. */
  #unwanted = 0;
  #asking = false;
  #ended = false;
  #round = 0;
  #lastMs: number;
  #progressMs: number;

  /** `before`: tokens that were delivered already, `most`: how many there may be in all. */
  constructor(before: Int32Array, most: number, nowMs: number, sink: ReceiverSink) {
    this.#tokens = new Int32Array(Math.max(before.length, Math.min(most, FIRST_TOKENS)));
    this.#tokens.set(before);
    this.#next = before.length;
    this.#lastMs = nowMs;
    this.#progressMs = nowMs;
    this.#sink = sink;
  }

  /** Number of tokens delivered: the place of the next one. */
  get next(): number {
    return this.#next;
  }

  /** Tokens before this place need not be sent again. */
  get received(): number {
    return Math.max(this.#next, this.#unwanted);
  }

  /** When something last arrived, or a question was sent. */
  get lastMs(): number {
    return this.#lastMs;
  }

  /** When tokens were last delivered, or an attempt began. */
  get progressMs(): number {
    return this.#progressMs;
  }

  /** All tokens delivered so far. */
  get delivered(): Int32Array {
    return this.#tokens.subarray(0, this.#next);
  }

  /** The decode rank's last word in this attempt. Rejects when that is an error. */
  get done(): Promise<DecodeDone> {
    return this.#done.promise;
  }

  /** The decode rank's last word in this attempt is here. */
  get ended(): boolean {
    return this.#ended;
  }

  /** Whose answers are taken: another number with every attempt, and between two of them. */
  get round(): number {
    return this.#round;
  }

  /** An attempt is over: what its rank answers now is nobody's. */
  leave(): void {
    this.#round++;
  }

  /** Another attempt begins: its rank is listened to, and nothing was asked of it yet. */
  listen(nowMs: number): void {
    this.#round++;
    this.#done = openEnd();
    this.#ended = false;
    this.#asking = false;
    this.#lastMs = nowMs;
    this.#progressMs = nowMs;
  }

  /** A question is answered or failed. */
  answered(): void {
    this.#asking = false;
  }

  take(chunk: Pick<TokenChunk, "seq" | "tokens" | "logprobs" | "done">, nowMs: number): void {
    this.#lastMs = nowMs;
    if (!this.#sink.wanted()) this.#unwanted = Math.max(this.#unwanted, chunk.seq + chunk.tokens.length);
    else if (!this.#deliver(chunk, nowMs)) return;
    this.#end(chunk.done);
  }

  /** False: the chunk is dropped as a whole. */
  #deliver(chunk: Pick<TokenChunk, "seq" | "tokens" | "logprobs" | "done">, nowMs: number): boolean {
    if (chunk.seq > this.#next) {
      this.ask(nowMs);
      return false;
    }
    const known = this.#next - chunk.seq;
    if (known > 0 && known >= chunk.tokens.length && chunk.done === null) {
      this.#sink.onDuplicate();
      return false;
    }
    const fresh = known === 0 ? chunk.tokens : chunk.tokens.subarray(known);
    if (fresh.length > 0) {
      this.#progressMs = nowMs;
      this.#keep(fresh);
      this.#sink.onTokens(
        fresh,
        known === 0 || chunk.logprobs === null ? chunk.logprobs : cutLogprobs(chunk.logprobs, known),
      );
    }
    return true;
  }

  #end(done: DecodeDone | null): void {
    if (done === null) return;
    if (!this.#ended) this.#sink.onDone(done);
    this.#ended = true;
    if (done.error !== null) this.#done.reject(new MargayError(done.error));
    else this.#done.resolve(done);
  }

  /** Asks for what is missing, unless that was asked already. */
  ask(nowMs: number): void {
    if (this.#asking || !this.#sink.wanted()) return;
    this.#asking = true;
    this.#lastMs = nowMs;
    this.#sink.onGap(this.#next);
  }

  #keep(tokens: Int32Array): void {
    const length = this.#next + tokens.length;
    if (length > this.#tokens.length) {
      const larger = new Int32Array(Math.max(length, this.#tokens.length * 2));
      larger.set(this.delivered);
      this.#tokens = larger;
    }
    this.#tokens.set(tokens, this.#next);
    this.#next = length;
  }
}

function openEnd(): PromiseWithResolvers<DecodeDone> {
  const end = Promise.withResolvers<DecodeDone>();
  // It may come before, or without, anybody waiting for it.
  end.promise.catch(() => {});
  return end;
}

function cutLogprobs(logprobs: Logprobs, tokens: number): Logprobs {
  return {
    chosen: logprobs.chosen.subarray(tokens),
    width: logprobs.width,
    ids: logprobs.ids.subarray(tokens * logprobs.width),
    values: logprobs.values.subarray(tokens * logprobs.width),
  };
}
