import type { BusObserver } from "#protocol/bus/bus.ts";
import { subjectKind } from "#protocol/subjects.ts";
import type { Logger } from "./logger.ts";
import type { Metrics } from "./metrics.ts";

/** Turns what happens on a bus into log lines and counters. */
export function observeBus(logger: Logger, metrics: Metrics): BusObserver {
  let outages = 0;
  metrics.gauge("margay_bus_connected", {}, 1);
  return {
    onState(state, detail) {
      metrics.gauge("margay_bus_connected", {}, state === "connected" ? 1 : 0);
      if (state === "connected") {
        metrics.count("margay_bus_reconnects_total", {});
        logger.info({ detail, outages }, "the message bus is back");
      } else if (state === "disconnected") {
        outages++;
        logger.warn({ detail }, "the message bus is lost; reconnecting");
      }
    },
    onRejected(subject, detail) {
      metrics.count("margay_bus_rejected_total", { subject: subjectKind(subject) });
      logger.warn({ subject, detail }, "a message was not understood");
    },
    onDropped(subject) {
      metrics.count("margay_bus_dropped_total", { subject: subjectKind(subject) });
      logger.debug({ subject }, "a message was dropped: the bus is not connected");
    },
    onDenied(operation, subject) {
      metrics.count("margay_bus_denied_total", { operation });
      logger.error({ operation, subject }, "the NATS server denied this");
    },
    onHandlerError(subject, error) {
      logger.error({ subject, error }, "the handler of a message failed");
    },
  };
}
