import type { MargayError } from "#protocol/errors.ts";
import type { Clock } from "#service/clock.ts";

/**
 * A reason to stop waiting that may come from outside: the client left, the deadline passed, a rank was lost.
 * The first reason counts. Nobody needs to wait on it.
 *
 * It lives as long as a request: what was waited for is let go when the wait is over, which a race against one long promise
 * would not do.
 */
export class Interruption {
  readonly #waits = new Set<(error: MargayError) => void>();
  #error: MargayError | null = null;

  get error(): MargayError | null {
    return this.#error;
  }

  raise(error: MargayError): void {
    if (this.#error !== null) return;
    this.#error = error;
    // What was over before the reason came is told first.
    queueMicrotask(() => {
      for (const end of this.#waits) end(error);
      this.#waits.clear();
    });
  }

  /** `work`, or the reason if that comes first or came already. `work` itself goes on and must look after itself. */
  race<T>(work: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      if (this.#error === null) this.#waits.add(reject);
      else reject(this.#error);
      const over = (): void => void this.#waits.delete(reject);
      work.then(resolve, reject).then(over);
    });
  }

  /** Waits `ms`, or until the reason comes. */
  async pause(clock: Clock, ms: number): Promise<void> {
    const over = Promise.withResolvers<void>();
    const timer = clock.after(ms, over.resolve);
    try {
      await this.race(over.promise);
    } finally {
      timer.cancel();
    }
  }
}

/** `work`, or `error()` after `ms`. */
export async function within<T>(clock: Clock, ms: number, work: Promise<T>, error: () => MargayError): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = clock.after(ms, () => late.reject(error()));
  try {
    return await Promise.race([work, late.promise]);
  } finally {
    timer.cancel();
  }
}
