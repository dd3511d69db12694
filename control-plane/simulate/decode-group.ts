import type { FleetModel } from "./fleet-model.ts";
import type { TraceRequest } from "./trace-file.ts";

/** A request that has its first token. */
export interface Stream {
  readonly request: TraceRequest;
  readonly firstMs: number;
  /** The group's count of tokens at which it is done. */
  doneAt: number;
}

/**
 * The streams of one decode group. All of them gain tokens alike, so a count of tokens stands for the time of all, and a
 * stream is done at a count of its own.
 */
export class DecodeGroup {
  readonly bornMs: number;
  readonly readyMs: number;
  leaving = false;
  readonly #model: FleetModel;
  /** Heap, the first to be done on top. */
  readonly #heap: Stream[] = [];
  #context = 0;
  #count = 0;
  #countedMs = 0;
  #tokenMs = 0;

  constructor(model: FleetModel, bornMs: number, readyMs: number) {
    this.#model = model;
    this.bornMs = bornMs;
    this.readyMs = readyMs;
  }

  get streams(): number {
    return this.#heap.length;
  }

  get nextEndMs(): number {
    const first = this.#heap[0];
    return first === undefined
      ? Number.POSITIVE_INFINITY
      : this.#countedMs + (first.doneAt - this.#count) * this.#tokenMs;
  }

  hasRoom({ request }: Stream, nowMs: number): boolean {
    if (this.leaving || this.readyMs > nowMs) return false;
    const context = this.#context + request.promptTokens + request.outputTokens;
    if (context > this.#model.kvTokens) return this.streams === 0;
    return this.streams < this.#model.mostStreams(context / (this.streams + 1));
  }

  join(stream: Stream, nowMs: number): void {
    this.#countTo(nowMs);
    const { promptTokens, outputTokens } = stream.request;
    stream.doneAt = this.#count + outputTokens - 1;
    this.#context += promptTokens + outputTokens;
    this.#push(stream);
    this.#pace();
  }

  /** Tells of the streams that are done by now. */
  advance(nowMs: number, done: (stream: Stream) => void): void {
    while (this.nextEndMs <= nowMs + 1e-6) {
      this.#countTo(nowMs);
      const stream = this.#pop();
      this.#context -= stream.request.promptTokens + stream.request.outputTokens;
      this.#pace();
      done(stream);
    }
  }

  #countTo(nowMs: number): void {
    if (this.#tokenMs > 0) this.#count += (nowMs - this.#countedMs) / this.#tokenMs;
    this.#countedMs = nowMs;
  }

  #pace(): void {
    this.#tokenMs = this.#model.tokenMs(this.streams, this.#context);
  }

  #push(stream: Stream): void {
    const heap = this.#heap;
    let at = heap.push(stream) - 1;
    while (at > 0) {
      const above = (at - 1) >> 1;
      if (heap[above]!.doneAt <= stream.doneAt) break;
      heap[at] = heap[above]!;
      at = above;
    }
    heap[at] = stream;
  }

  #pop(): Stream {
    const heap = this.#heap;
    const top = heap[0]!;
    const last = heap.pop()!;
    if (heap.length === 0) return top;
    let at = 0;
    for (;;) {
      let below = 2 * at + 1;
      if (below >= heap.length) break;
      if (below + 1 < heap.length && heap[below + 1]!.doneAt < heap[below]!.doneAt) below++;
      if (heap[below]!.doneAt >= last.doneAt) break;
      heap[at] = heap[below]!;
      at = below;
    }
    heap[at] = last;
    return top;
  }
}
