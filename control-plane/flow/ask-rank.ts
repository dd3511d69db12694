import type { Bus } from "#protocol/bus/bus.ts";
import { asMargayError, MargayError } from "#protocol/errors.ts";
import type { RankId } from "#protocol/ids.ts";
import type { Clock } from "#service/clock.ts";
import type { FleetWatch } from "../fleet/fleet-watch.ts";
import { type Interruption, within } from "./interruption.ts";
import type { Passage } from "./passage.ts";

/** How long a rank that did not answer is left alone by everybody. */
export const ASK_FAULT_COOL_MS = 1_000;
const BUS_RETRY_AFTER_MS = 5_000;

export interface RankQuestion<T> {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly fleet: FleetWatch;
  /** How long an outage of the bus is waited out. */
  readonly waitMs: number;
  readonly passage: Passage;
  readonly trouble: Interruption;
  readonly rankId: RankId;
  readonly question: () => Promise<T>;
}

/**
 * A question to a rank, cut short by whatever ends the attempt, and asked again after an outage of the bus: ranks answer a
 * repeated question as they did the first. A rank that does not answer is left alone a while.
 */
export async function askRank<T>(asked: RankQuestion<T>): Promise<T> {
  const { passage, trouble, rankId } = asked;
  for (;;) {
    try {
      return await passage.interruption.race(trouble.race(asked.question()));
    } catch (thrown) {
      const error = asMargayError(thrown);
      if (error.code === "timeout" || error.code === "worker_lost") {
        asked.fleet.cool(rankId, ASK_FAULT_COOL_MS);
        passage.avoid.add(rankId);
      }
      if (error.code !== "bus_unavailable") throw error;
      await busIsBack(asked);
    }
  }
}

/** Waits as long as a request may wait for a worker. */
async function busIsBack({ bus, clock, waitMs, passage, trouble }: RankQuestion<unknown>): Promise<void> {
  if (bus.state === "connected") return;
  const back = Promise.withResolvers<void>();
  const listening = bus.onState((state) => {
    if (state === "connected") back.resolve();
  });
  const error = (): MargayError =>
    new MargayError("no_worker", "The message bus is unavailable.", { retryAfterMs: BUS_RETRY_AFTER_MS });
  try {
    await passage.interruption.race(trouble.race(within(clock, waitMs, back.promise, error)));
  } finally {
    listening.unsubscribe();
  }
}
