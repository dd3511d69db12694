import { setImmediate as macrotask } from "node:timers/promises";
import { type Clock, type Random, type Timer, timersFrom } from "#service/clock.ts";
import { seededRandom } from "../../control-plane/simulate/seeded-random.ts";

interface Pending {
  readonly dueMs: number;
  readonly order: number;
  readonly fn: () => void;
}

/**
 * Virtual time. Owns the pending timers; nothing happens but inside `advance`.
 *
 *   scheduled -> fired | cancelled
 *
 * 1 timers fire in the order of their due times, equal ones in the order they were set
 * 2 while a timer fires, `now` is exactly its due time
 * 3 between two timers every promise that can settle without real I/O has settled
 */
export class FakeClock implements Clock {
  readonly #timers = new Set<Pending>();
  readonly #derived = timersFrom((ms, fn) => this.after(ms, fn));
  readonly #startMs: number;
  #elapsedMs = 0;
  #order = 0;

  constructor(startMs = 1_800_000_000_000) {
    this.#startMs = startMs;
  }

  now(): number {
    return this.#startMs + this.#elapsedMs;
  }

  monotonic(): number {
    return this.#elapsedMs;
  }

  /** Timers set and neither fired nor cancelled; repeating ones count once. */
  get pending(): number {
    return this.#timers.size;
  }

  after(ms: number, fn: () => void): Timer {
    const timer: Pending = { dueMs: this.#elapsedMs + Math.max(0, ms), order: this.#order++, fn };
    this.#timers.add(timer);
    return { cancel: () => void this.#timers.delete(timer) };
  }

  every(ms: number, fn: () => void): Timer {
    return this.#derived.every(ms, fn);
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return this.#derived.sleep(ms, signal);
  }

  /** Lets everything settle that waits for no timer. */
  async settle(): Promise<void> {
    for (let round = 0; round < 3; round++) await macrotask();
  }

  /** Moves time forward by `ms`, firing what falls due on the way. */
  async advance(ms: number): Promise<void> {
    const target = this.#elapsedMs + ms;
    await this.settle();
    for (;;) {
      const next = this.#next();
      if (next === null || next.dueMs > target) break;
      this.#timers.delete(next);
      this.#elapsedMs = Math.max(this.#elapsedMs, next.dueMs);
      next.fn();
      await this.settle();
    }
    this.#elapsedMs = target;
  }

  #next(): Pending | null {
    let first: Pending | null = null;
    for (const timer of this.#timers) {
      if (first === null || timer.dueMs < first.dueMs || (timer.dueMs === first.dueMs && timer.order < first.order)) {
        first = timer;
      }
    }
    return first;
  }
}

/** Repeatable randomness. */
export function fakeRandom(seed = 1): Random {
  return seededRandom(seed);
}
