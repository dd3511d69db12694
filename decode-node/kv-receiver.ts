import type { EngineEvent } from "#native";
import type { SequenceHandle } from "#protocol/kv.ts";
import type { Clock, Timer } from "#service/clock.ts";

/** How the arrival of a sequence's pages ended. */
export type Arrival =
  | { readonly kind: "complete"; readonly pages: number; readonly bytes: number; readonly ms: number }
  | { readonly kind: "failed"; readonly cause: string };

interface Expected {
  readonly handle: SequenceHandle;
  arrival: Arrival | null;
  readonly waiters: Set<(arrival: Arrival) => void>;
}

/**
 * Owns the expected arrivals of this rank. Pages are taken and verified natively; this only hears of their end.
 *
 *   expected -> complete | failed (by the transfer, the reservation's lapse, or a close)
 */
export class KvReceiver {
  readonly #clock: Clock;
  readonly #expected = new Map<number, Expected>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  expect(handle: SequenceHandle): void {
    this.#expected.set(handle.slot, { handle, arrival: null, waiters: new Set() });
  }

  onEvent(event: EngineEvent): void {
    if (event.kind === "received") {
      const { pages, bytes, ms } = event;
      this.#settle(event.handle, { kind: "complete", pages, bytes, ms });
    } else if (event.kind === "receive-failed") this.#settle(event.handle, { kind: "failed", cause: event.cause });
    else if (event.kind === "lapsed") this.forget(event.handle, "the reservation lapsed");
  }

  /** Resolves with the end of the arrival, or as failed at `deadlineMs` (epoch milliseconds). */
  arrived(handle: SequenceHandle, deadlineMs: number): Promise<Arrival> {
    const expected = this.#find(handle);
    if (expected === null) return Promise.resolve({ kind: "failed", cause: "nothing is expected" });
    if (expected.arrival !== null) return Promise.resolve(expected.arrival);
    return new Promise((resolve) => {
      const settle = (arrival: Arrival) => {
        timer.cancel();
        expected.waiters.delete(settle);
        resolve(arrival);
      };
      const late = () => settle({ kind: "failed", cause: "pages were missing at the deadline" });
      const timer: Timer = this.#clock.after(deadlineMs - this.#clock.now(), late);
      expected.waiters.add(settle);
    });
  }

  /** Nothing is expected for this sequence any more; whoever waits is told `cause`. */
  forget(handle: SequenceHandle, cause: string): void {
    const expected = this.#find(handle);
    if (expected === null) return;
    if (expected.arrival === null) this.#settle(handle, { kind: "failed", cause });
    this.#expected.delete(handle.slot);
  }

  #settle(handle: SequenceHandle, arrival: Arrival): void {
    const expected = this.#find(handle);
    if (expected === null || expected.arrival !== null) return;
    expected.arrival = arrival;
    for (const waiter of [...expected.waiters]) waiter(arrival);
  }

  #find(handle: SequenceHandle): Expected | null {
    const expected = this.#expected.get(handle.slot);
    return expected?.handle.generation === handle.generation ? expected : null;
  }
}
