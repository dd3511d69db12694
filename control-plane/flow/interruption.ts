import type { MargayError } from "#protocol/errors.ts";
import type { Clock } from "#service/clock.ts";

/**
 * A reason to stop waiting that may come from outside: the client left, the deadline passed, a rank was lost.
 * The first reason counts. Nobody needs to wait on it.
 */
export class Interruption {
  readonly #happened = Promise.withResolvers<never>();
  #error: MargayError | null = null;

  constructor() {
    this.#happened.promise.catch(() => {});
  }

  get error(): MargayError | null {
    return this.#error;
  }

  raise(error: MargayError): void {
    if (this.#error !== null) return;
    this.#error = error;
    this.#happened.reject(error);
  }

  /** `work`, or the reason if that comes first or came already. `work` itself goes on and must look after itself. */
  race<T>(work: Promise<T>): Promise<T> {
    return Promise.race([this.#happened.promise, work]);
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
