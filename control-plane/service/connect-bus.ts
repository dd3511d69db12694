import type { Bus } from "#protocol/bus/bus.ts";
import { connectNats } from "#protocol/bus/nats-bus.ts";
import type { BusRole } from "#protocol/permissions.ts";
import { observeBus } from "./bus-observer.ts";
import type { Clock, Random } from "./clock.ts";
import type { Logger } from "./logger.ts";
import type { Metrics } from "./metrics.ts";
import type { NatsAccess } from "./nats-access.ts";

export interface ConnectBusOptions extends NatsAccess {
  readonly role: BusRole;
  /** Shown by the server's monitoring: the worker or gateway id. */
  readonly name: string;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly metrics: Metrics;
}

/** A process that starts before its NATS server waits this long for it. */
const CONNECT_MS = 15_000;

/** The bus of a process, observed by its log and metrics. Rejects with `bus_unavailable` and one clear sentence. */
export function connectBus(options: ConnectBusOptions): Promise<Bus> {
  const { clock, logger, metrics, ...rest } = options;
  return connectNats({ ...rest, connectTimeoutMs: CONNECT_MS, timers: clock, observer: observeBus(logger, metrics) });
}
