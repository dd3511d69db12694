import type { Clock } from "./clock.ts";

/** One thing that a thread did. Epoch milliseconds, so that spans of several processes can be laid side by side. */
export interface TraceSpan {
  readonly name: string;
  readonly thread: string;
  readonly startMs: number;
  readonly ms: number;
}

const JAVASCRIPT = "JavaScript";
const MOST_SPANS = 50_000;

/** What native threads did; the part of an engine that a trace needs. */
export interface NativeTracer {
  startTrace(): void;
  takeTrace(): {
    readonly names: readonly string[];
    readonly threads: readonly string[];
    readonly spans: Float64Array;
  };
}

/**
 * Records what this process does for a while, on request. Off, `time` costs one branch.
 *
 *   off -> recording (one request, some seconds) -> off
 *
 * Owns the spans of the JavaScript thread. 1 at most MOST_SPANS, the first ones. 2 one recording at a time.
 */
export class Tracer {
  readonly #native: NativeTracer;
  readonly #clock: Pick<Clock, "monotonic">;
  #spans: TraceSpan[] | null = null;

  constructor(native: NativeTracer, clock: Pick<Clock, "monotonic">) {
    this.#native = native;
    this.#clock = clock;
  }

  /** Runs `body`, and notes how long it took when somebody wants to know. */
  time<T>(name: string, body: () => T): T {
    if (this.#spans === null) return body();
    const startMs = this.#epochMs();
    try {
      return body();
    } finally {
      if (this.#spans !== null && this.#spans.length < MOST_SPANS)
        this.#spans.push({ name, thread: JAVASCRIPT, startMs, ms: this.#epochMs() - startMs });
    }
  }

  /** What happened until `wait` resolved, on the JavaScript thread and on native ones. Null: a recording runs already. */
  async record(wait: Promise<void>): Promise<readonly TraceSpan[] | null> {
    if (this.#spans !== null) return null;
    const own: TraceSpan[] = [];
    this.#spans = own;
    this.#native.startTrace();
    try {
      await wait;
    } finally {
      this.#spans = null;
    }
    const { names, threads, spans } = this.#native.takeTrace();
    for (let at = 0; at < spans.length; at += 4) {
      const [name, thread] = [names[spans[at]!]!, threads[spans[at + 1]!]!];
      own.push({ name, thread, startMs: spans[at + 2]!, ms: spans[at + 3]! });
    }
    return own;
  }

  /** Finer than `clock.now()`: native spans have microseconds. */
  #epochMs(): number {
    return performance.timeOrigin + this.#clock.monotonic();
  }
}
