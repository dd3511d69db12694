import type { Bus } from "#protocol/bus/bus.ts";
import { MargayError } from "#protocol/errors.ts";
import type { Clock } from "#service/clock.ts";
import { within } from "./interruption.ts";

const RETRY_AFTER_MS = 5_000;

/** Waits out an outage of the bus; rejects with `bus_unavailable` when it lasts longer than `waitMs`. */
export async function outageOver(bus: Bus, clock: Clock, waitMs: number): Promise<void> {
  if (bus.state === "connected") return;
  const back = Promise.withResolvers<void>();
  const listening = bus.onState((state) => {
    if (state === "connected") back.resolve();
  });
  const tooLong = () => new MargayError("bus_unavailable", undefined, { retryAfterMs: RETRY_AFTER_MS });
  try {
    await within(clock, waitMs, back.promise, tooLong);
  } finally {
    listening.unsubscribe();
  }
}
