import type { Bus } from "#protocol/bus/bus.ts";
import { asMargayError } from "#protocol/errors.ts";
import type { RankId } from "#protocol/ids.ts";
import { Cancel, CancelReply } from "#protocol/prefill.ts";
import type { RequestHead } from "#protocol/request.ts";
import { subjects } from "#protocol/subjects.ts";
import type { Clock } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import type { FleetWatch } from "../fleet/fleet-watch.ts";

const CANCEL_MS = 2_000;
const MOST_TRIES = 8;
const FIRST_PAUSE_MS = 100;
const MOST_PAUSE_MS = 5_000;

export interface Leg {
  readonly rankId: RankId;
  readonly epoch: number;
}

/**
 * Cancels one leg of an attempt until the rank has said that it holds nothing of it any more, or is gone. Never rejects
 * and keeps no client waiting. While the bus is away it waits: the rank goes on with the request until it is told.
 */
export async function releaseLeg(
  parts: {
    readonly bus: Bus;
    readonly clock: Clock;
    readonly logger: Logger;
    readonly metrics: Metrics;
    readonly fleet: FleetWatch;
  },
  head: RequestHead,
  leg: Leg,
): Promise<void> {
  for (let tried = 1; tried <= MOST_TRIES; ) {
    try {
      await parts.bus.request(subjects.cancel(leg.rankId), Cancel, { kind: "cancel", head }, CancelReply, CANCEL_MS);
      return;
    } catch (thrown) {
      if (!parts.fleet.isAlive(leg.rankId, leg.epoch)) return;
      const { code } = asMargayError(thrown);
      parts.logger.warn(
        { request: head.requestId, rank: leg.rankId, code, tried },
        "a cancellation was not acknowledged",
      );
      if (parts.bus.state === "closed") return;
      await parts.clock.sleep(Math.min(MOST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** tried));
      if (code !== "bus_unavailable") tried++;
    }
  }
}
