import type { Clock } from "./clock.ts";

/** Waits for `promise`, but no longer than `ms`. Resolves with whether it settled in time; its failure is no failure. */
export function atMost(clock: Clock, ms: number, promise: Promise<unknown>): Promise<boolean> {
  return new Promise((resolve) => {
    const timer = clock.after(ms, () => resolve(false));
    const settled = () => {
      timer.cancel();
      resolve(true);
    };
    promise.then(settled, settled);
  });
}
