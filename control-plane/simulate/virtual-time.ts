import { setImmediate as afterEverything } from "node:timers";
import type { Timer } from "#service/clock.ts";

interface Event {
  dueMs: number;
  /** Of two that are due together the one with the lower number is first. */
  readonly order: number;
  run: (() => void) | null;
}

/**
 * Virtual time: a queue of events, and a clock that stands still between them.
 *
 *   scheduled -> run | cancelled
 *
 * 1 events run in the order of their due times, those due together in the order in which they were scheduled
 * 2 between two events every promise that waits for no event has settled
 * 3 nothing else moves the clock, so equal beginnings give equal runs
 */
export class VirtualTime {
  /** Binary heap, the next event first. */
  readonly #heap: Event[] = [];
  #nowMs = 0;
  #order = 0;
  #ran = 0;

  /** Milliseconds since the beginning. */
  get nowMs(): number {
    return this.#nowMs;
  }

  /** Events run so far. */
  get ran(): number {
    return this.#ran;
  }

  at(dueMs: number, run: () => void): Timer {
    const event: Event = { dueMs: Math.max(dueMs, this.#nowMs), order: this.#order++, run };
    this.#push(event);
    return {
      cancel: () => {
        event.run = null;
      },
    };
  }

  after(ms: number, run: () => void): Timer {
    return this.at(this.#nowMs + Math.max(0, ms), run);
  }

  /**
   * Runs events until `holds`, or until the next one is due after `untilMs`; `afterEach` is called after every event, when
   * everything has settled. What either throws ends the run. Resolves with whether it holds.
   */
  run(untilMs: number, holds: () => boolean, afterEach: () => void = () => {}): Promise<boolean> {
    const ended = Promise.withResolvers<boolean>();
    const turn = (): void => {
      try {
        afterEach();
        if (holds()) ended.resolve(true);
        else if (this.#step(untilMs)) afterEverything(turn);
        else ended.resolve(holds());
      } catch (error) {
        ended.reject(error);
      }
    };
    afterEverything(turn);
    return ended.promise;
  }

  /** Runs the next event; false: none is due by then. */
  #step(untilMs: number): boolean {
    const event = this.#next(untilMs);
    if (event === null) {
      this.#nowMs = Math.max(this.#nowMs, untilMs);
      return false;
    }
    this.#nowMs = event.dueMs;
    this.#ran++;
    event.run?.();
    return true;
  }

  /** The next event that was not cancelled, taken out; null: none is due by then. */
  #next(untilMs: number): Event | null {
    for (;;) {
      const first = this.#heap[0];
      if (first === undefined || (first.run !== null && first.dueMs > untilMs)) return null;
      this.#pop();
      if (first.run !== null) return first;
    }
  }

  #push(event: Event): void {
    const heap = this.#heap;
    let at = heap.push(event) - 1;
    while (at > 0) {
      const above = (at - 1) >> 1;
      if (!isBefore(event, heap[above]!)) break;
      heap[at] = heap[above]!;
      at = above;
    }
    heap[at] = event;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    let at = 0;
    for (;;) {
      let below = 2 * at + 1;
      if (below >= heap.length) break;
      if (below + 1 < heap.length && isBefore(heap[below + 1]!, heap[below]!)) below++;
      if (!isBefore(heap[below]!, last)) break;
      heap[at] = heap[below]!;
      at = below;
    }
    heap[at] = last;
  }
}

function isBefore(a: Event, b: Event): boolean {
  return a.dueMs < b.dueMs || (a.dueMs === b.dueMs && a.order < b.order);
}
