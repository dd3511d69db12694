import type { FastifyInstance } from "fastify";
import type { Bus } from "#protocol/bus/bus.ts";
import type { GatewayId } from "#protocol/ids.ts";
import type { Clock, Random } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Tenancy } from "../../tenancy/tenancy.ts";
import { addFileRoutes } from "../files/file-routes.ts";
import { type FileLimits, FileStore } from "../files/file-store.ts";
import type { GatewayWatch } from "../gateway-watch.ts";
import { OwnRequests } from "../own-requests.ts";
import { BatchLog } from "./batch-log.ts";
import { addBatchRoutes, type BatchRoutesHost } from "./batch-routes.ts";
import { Batches } from "./batches.ts";
import type { AskSelf } from "./line-service.ts";

export interface BatchServiceParts {
  readonly bus: Bus;
  readonly gatewayId: GatewayId;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly tenancy: Tenancy;
  readonly gateways: GatewayWatch;
  readonly files: FileLimits;
  /** Requests of one batch that are under way at a time, and the largest of them. */
  readonly lines: number;
  readonly maxLineBytes: number;
  readonly askSelf: AskSelf;
}

/** Files and batches: their stores, their routes, and the work on them. */
export class BatchService {
  /** What this process asks itself. */
  readonly own: OwnRequests;
  readonly batches: Batches;
  readonly #host: BatchRoutesHost;

  constructor(parts: BatchServiceParts) {
    const { bus, gatewayId, clock, random, files } = parts;
    this.own = new OwnRequests(random);
    const host = {
      ...{ ...parts, own: this.own, connected: () => bus.state === "connected" },
      log: new BatchLog(bus, gatewayId, clock, files.maxAgeMs),
      files: new FileStore(bus, gatewayId, files),
    };
    this.batches = new Batches(host);
    this.#host = { ...host, batches: this.batches };
  }

  addRoutes(app: FastifyInstance): void {
    addFileRoutes(app, this.#host);
    addBatchRoutes(app, this.#host);
  }
}
