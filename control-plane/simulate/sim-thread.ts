import { type Clock, type Timer, timersFrom } from "#service/clock.ts";
import type { VirtualTime } from "./virtual-time.ts";

/** What a thread was late for. */
interface Late {
  readonly dueMs: number;
  readonly order: number;
  readonly run: () => void;
  readonly timer: { cancelled: boolean };
}

/** The virtual moment at which every simulation begins, epoch milliseconds. */
export const BEGIN_MS = 1_800_000_000_000;

/**
 * A thread of a simulated process: its clock, and the only way anything happens in it.
 *
 *   running -> (paused -> running)* -> dead
 *
 * 1 a paused thread does nothing; what fell due meanwhile happens when it wakes, in the order in which it fell due
 * 2 nothing ever happens in a dead one
 * 3 its wall clock may be off, its steady one is not
 */
export class SimThread implements Clock {
  readonly #time: VirtualTime;
  readonly #late: Late[] = [];
  readonly #derived = timersFrom((ms, fn) => this.after(ms, fn));
  #pausedUntilMs = 0;
  #dead = false;
  #posted = 0;
  /** How far its wall clock is ahead. */
  aheadMs = 0;

  constructor(time: VirtualTime) {
    this.#time = time;
  }

  get dead(): boolean {
    return this.#dead;
  }

  get paused(): boolean {
    return this.#pausedUntilMs > this.#time.nowMs;
  }

  now(): number {
    return BEGIN_MS + this.#time.nowMs + this.aheadMs;
  }

  monotonic(): number {
    return this.#time.nowMs;
  }

  after(ms: number, fn: () => void): Timer {
    const timer = { cancelled: false };
    const event = this.#time.after(ms, () => this.#due(fn, timer));
    return {
      cancel: () => {
        timer.cancelled = true;
        event.cancel();
      },
    };
  }

  every(ms: number, fn: () => void): Timer {
    return this.#derived.every(ms, fn);
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return this.#derived.sleep(ms, signal);
  }

  /** Something from outside reaches the thread: at once, or when it wakes. */
  post(run: () => void): void {
    this.#due(run, { cancelled: false });
  }

  /** Nothing happens in it for `ms`. */
  pause(ms: number): void {
    const untilMs = this.#time.nowMs + ms;
    if (this.#dead || untilMs <= this.#pausedUntilMs) return;
    this.#pausedUntilMs = untilMs;
    this.#time.at(untilMs, () => this.#wake());
  }

  die(): void {
    this.#dead = true;
    this.#late.length = 0;
  }

  #due(run: () => void, timer: { cancelled: boolean }): void {
    if (this.#dead) return;
    if (this.paused || this.#late.length > 0) {
      this.#late.push({ dueMs: this.#time.nowMs, order: this.#posted++, run, timer });
    } else run();
  }

  /** One thing after another, each as an event of its own. */
  #wake(): void {
    if (this.paused) return;
    const first = this.#late.shift();
    if (first === undefined || this.#dead) return;
    if (this.#late.length > 0) this.#time.after(0, () => this.#wake());
    if (!first.timer.cancelled) first.run();
  }
}
