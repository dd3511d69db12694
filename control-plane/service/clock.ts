import { randomBytes, randomInt } from "node:crypto";

/** Ends a timer. Idempotent. */
export interface Timer {
  cancel(): void;
}

/**
 * Time and randomness for everything above native. No component touches `Date`, `setTimeout`, `performance` or
 * `Math.random` itself (test/architecture.test.ts), so the whole system can run under virtual time.
 */
export interface Clock {
  /** Wall clock, epoch milliseconds: for deadlines that cross processes. */
  now(): number;
  /** Milliseconds since an arbitrary start, never backwards: for durations. */
  monotonic(): number;
  /** Calls `fn` once after `ms`. The timer does not keep the process alive. */
  after(ms: number, fn: () => void): Timer;
  /** Calls `fn` every `ms`. The timer does not keep the process alive. */
  every(ms: number, fn: () => void): Timer;
  /** Resolves after `ms`, or rejects with the signal's reason. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

export interface Random {
  /** Uniform in [0, 1). */
  uniform(): number;
  /** Uniform integer in [0, 2^53). */
  seed(): number;
  /** Lower-case hexadecimal of `bytes` random bytes: for ids. */
  hex(bytes: number): string;
}

/** Epoch milliseconds in ISO 8601: `2026-11-24T02:00:00.000Z`. */
export function isoTime(epochMs: number): string {
  return new Date(epochMs).toISOString();
}

/** `every` and `sleep` of a clock that has only `after` of its own. */
export function timersFrom(after: Clock["after"]): Pick<Clock, "every" | "sleep"> {
  return {
    every(ms, fn) {
      const intervalMs = Math.max(1, ms);
      let cancelled = false;
      const tick = (): void => {
        next = after(intervalMs, tick);
        fn();
        if (cancelled) next.cancel();
      };
      let next = after(intervalMs, tick);
      return {
        cancel: () => {
          cancelled = true;
          next.cancel();
        },
      };
    },
    sleep(ms, signal) {
      return new Promise((resolve, reject) => {
        if (signal?.aborted) return reject(signal.reason);
        const onAbort = () => {
          timer.cancel();
          reject(signal?.reason);
        };
        const timer = after(ms, () => {
          signal?.removeEventListener("abort", onAbort);
          resolve();
        });
        signal?.addEventListener("abort", onAbort, { once: true });
      });
    },
  };
}

/** The longest wait a timer of Node can hold; a longer one would fire at once. */
const LONGEST_MS = 2 ** 31 - 1;

/** A wait as Node's timers take it: they drop fractions of a millisecond, and would end that much before the time. */
function timerMs(ms: number): number {
  return Math.min(Math.ceil(Math.max(0, ms)), LONGEST_MS);
}

/** The machine's clock. */
export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  after(ms, fn) {
    const timer = setTimeout(fn, timerMs(ms)).unref();
    return { cancel: () => clearTimeout(timer) };
  },
  every(ms, fn) {
    const timer = setInterval(fn, ms).unref();
    return { cancel: () => clearInterval(timer) };
  },
  sleep(ms, signal) {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      const timer = setTimeout(() => {
        signal?.removeEventListener("abort", onAbort);
        resolve();
      }, timerMs(ms));
      const onAbort = () => {
        clearTimeout(timer);
        reject(signal?.reason);
      };
      signal?.addEventListener("abort", onAbort, { once: true });
    });
  },
};

/** Random bytes drawn in stock: a call of the system for each id costs more than the id. None is given out twice. */
let stock: Buffer = Buffer.alloc(0);

function takeBytes(count: number): Buffer {
  if (stock.length < count) stock = randomBytes(Math.max(count, 4_096));
  const taken = stock.subarray(0, count);
  stock = stock.subarray(count);
  return taken;
}

/** The machine's randomness. */
export const systemRandom: Random = {
  uniform: () => randomInt(2 ** 47) / 2 ** 47,
  seed: () => takeBytes(6).readUIntBE(0, 6) * 32 + randomInt(32),
  hex: (bytes) => takeBytes(bytes).toString("hex"),
};
