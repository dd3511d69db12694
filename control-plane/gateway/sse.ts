import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { MargayError } from "#protocol/errors.ts";
import type { Clock } from "#service/clock.ts";
import { errorBody } from "./http-errors.ts";

/** What an API's streams end with, and how they tell a failure once the headers are out: whole events. */
export interface StreamDialect {
  readonly end: string;
  failure(error: MargayError): string | Promise<string>;
}

export const OPENAI_STREAM: StreamDialect = {
  end: "data: [DONE]\n\n",
  failure: (error) => `data: ${JSON.stringify(errorBody(error))}\n\n`,
};

/** When a reader counts as too slow. */
export interface ReaderLimits {
  /** Bytes waiting for the reader above which its time runs. */
  readonly bufferedBytes: number;
  /** How long it may stay above. */
  readonly graceMs: number;
  /** Bytes waiting at which it is given up at once. */
  readonly mostBytes: number;
}

export const READER_LIMITS: ReaderLimits = { bufferedBytes: 1_048_576, graceMs: 10_000, mostBytes: 8_388_608 };

/**
 * Owns one streamed answer: the response from its headers to its last byte.
 *
 *   quiet -> open -> ended
 *
 * What is sent within one turn of the event loop leaves together when the turn is over: the tokens of a step come for many
 * streams at once, and writes back to back cost half of what they cost one by one between other work.
 *
 * S1 Nothing is sent before the first `send` or `comment`, so an early failure is still a proper HTTP status.
 * S2 Bytes leave in the order of the calls; after the end calls do nothing.
 * S3 The bytes waiting for a slow reader are bounded: past the limits `onSlow` is called once and the socket closed.
 */
export class SseStream {
  readonly #response: ServerResponse;
  readonly #clock: Clock;
  readonly #limits: ReaderLimits;
  readonly #headers: () => Record<string, string>;
  readonly #onSlow: (error: MargayError) => void;
  #state: "quiet" | "open" | "ended" = "quiet";
  #lastByteMs: number;
  #slowSinceMs: number | null = null;
  /** What this turn gave, and whether its end is waited for. */
  #pending = "";
  #due = false;
  /** The headers are on their way. */
  #begun = false;

  constructor(options: {
    readonly response: ServerResponse;
    readonly clock: Clock;
    readonly limits: ReaderLimits;
    /** Headers beside those of SSE; asked when the stream opens. */
    readonly headers: () => Record<string, string>;
    readonly onSlow: (error: MargayError) => void;
  }) {
    this.#response = options.response;
    this.#clock = options.clock;
    this.#limits = options.limits;
    this.#headers = options.headers;
    this.#onSlow = options.onSlow;
    this.#lastByteMs = options.clock.monotonic();
  }

  get opened(): boolean {
    return this.#state !== "quiet";
  }

  /** Milliseconds since the last byte was handed to the socket, or since the stream was made. */
  get idleMs(): number {
    return this.#clock.monotonic() - this.#lastByteMs;
  }

  /** Sends whole events (`data: ...\n\n`, one or several). */
  send(events: string): void {
    if (this.#state === "ended" || events === "") return;
    if (this.#state === "quiet") this.#open();
    this.#lastByteMs = this.#clock.monotonic();
    this.#pending += events;
    if (this.#due) return;
    this.#due = true;
    queueMicrotask(this.#flush);
  }

  readonly #flush = (): void => {
    this.#due = false;
    const events = this.#pending;
    this.#pending = "";
    if (this.#state === "ended" || events === "") return;
    const { socket, chunkedEncoding } = this.#response;
    // The headers leave with the first write. After that `write` would make four pieces of every chunk: this is the
    // hottest line of a stream, and one string to the socket is the same bytes for half the CPU time.
    const direct = this.#begun && socket !== null && chunkedEncoding;
    this.#begun = true;
    const taken = direct ? writeChunk(socket, events) : this.#response.write(events);
    if (taken) this.#slowSinceMs = null;
    else this.checkReader();
  };

  /** Sends one comment line, which clients skip. */
  comment(text: string): void {
    this.send(`: ${text}\n\n`);
  }

  end(events: string): void {
    this.send(events);
    if (this.#state !== "open") return;
    this.#flush();
    this.#state = "ended";
    this.#response.end();
  }

  /** Judges the reader; also called from time to time while nothing is sent. */
  checkReader(): void {
    if (this.#state !== "open") return;
    const { bufferedBytes, graceMs, mostBytes } = this.#limits;
    const waiting = this.#response.writableLength;
    if (waiting <= bufferedBytes) {
      this.#slowSinceMs = null;
      return;
    }
    this.#slowSinceMs ??= this.#clock.monotonic();
    if (waiting <= mostBytes && this.#clock.monotonic() - this.#slowSinceMs < graceMs) return;
    this.#state = "ended";
    this.#onSlow(new MargayError("cancelled", "The reader of the stream was too slow."));
    this.#response.destroy();
  }

  #open(): void {
    this.#state = "open";
    this.#response.writeHead(200, {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache, no-transform",
      "x-accel-buffering": "no",
      ...this.#headers(),
    });
  }
}

/** One chunk of a chunked body. Text that is ASCII needs no encoder. */
function writeChunk(socket: Socket, text: string): boolean {
  const bytes = Buffer.byteLength(text);
  return socket.write(`${bytes.toString(16)}\r\n${text}\r\n`, bytes === text.length ? "latin1" : "utf8");
}
