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
/** A rank that was silent for so long is forgotten by the fleet as well. */
const GIVE_UP_MS = 120_000;
const FIRST_PAUSE_MS = 100;
const MOST_PAUSE_MS = 5_000;

export interface Leg {
  readonly rankId: RankId;
  readonly epoch: number;
}

/**
 * Cancels one leg of an attempt until the rank has said that it holds nothing of it any more, or its epoch is over. A
 * rank that is lost, or out of reach with the bus, may come back with everything it held. Never rejects and keeps no
 * client waiting. Resolves with the milliseconds of compute that the rank had not told of; what could not be told within GIVE_UP_MS ends on the rank by its own deadlines.
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
): Promise<number> {
  const { bus, clock, logger, metrics, fleet } = parts;
  const untilMs = clock.monotonic() + GIVE_UP_MS;
  for (let tried = 1; ; tried++) {
    try {
      const message = { kind: "cancel", head } as const;
      const reply = await bus.request(subjects.cancel(leg.rankId), Cancel, message, CancelReply, CANCEL_MS);
      metrics.count("margay_cancellations_total", { outcome: "acknowledged" });
      return reply.kind === "cancelled" ? reply.gpuMs : 0;
    } catch (thrown) {
      if (!fleet.isKnown(leg.rankId, leg.epoch) || bus.state === "closed") return 0;
      const fields = { request: head.requestId, rank: leg.rankId, code: asMargayError(thrown).code, tried };
      if (clock.monotonic() >= untilMs) {
        metrics.count("margay_cancellations_total", { outcome: "given_up" });
        logger.warn(fields, "a cancellation was never acknowledged");
        return 0;
      }
      logger.debug(fields, "a cancellation was not acknowledged");
      await clock.sleep(Math.min(MOST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** tried));
    }
  }
}
