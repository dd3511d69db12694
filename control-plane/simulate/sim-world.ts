import type { Duplex } from "node:stream";
import { silentObserver } from "#protocol/bus/bus.ts";
import { GatewayId, ModelName } from "#protocol/ids.ts";
import { type Logger, openLogger, silentLogger } from "#service/logger.ts";
import { createMetrics, type Metrics } from "#service/metrics.ts";
import { SimFabric } from "../../native/binding/sim-fabric.ts";
import { type SimModel, simModel } from "../../native/binding/sim-model.ts";
import type { ServedModel } from "../chat/served-model.ts";
import type { ControlPlaneConfig } from "../config.ts";
import { ControlPlane } from "../control-plane.ts";
import { FleetWatch } from "../fleet/fleet-watch.ts";
import { openTenancy } from "../tenancy/tenancy.ts";
import { endsAt } from "./expected-answer.ts";
import type { Scenario } from "./scenario.ts";
import { between, namedRandom } from "./seeded-random.ts";
import { type SimLink, SimNetwork } from "./sim-network.ts";
import { SimTarget } from "./sim-target.ts";
import { SimThread } from "./sim-thread.ts";
import type { SimSite } from "./sim-worker.ts";
import { VirtualTime } from "./virtual-time.ts";

export const SIM_MODEL = ModelName.parse("sim");
/** Longest life of a request, and how long one waits for a worker. */
export const REQUEST_MS = 90_000;
export const WAIT_MS = 60_000;
const DRAIN_MS = 5_000;
const TTFT_GOAL_MS = 1_000;

export interface WorldOptions {
  readonly model: ServedModel;
  /** Mistakes to plant in the engines. */
  readonly planted: Partial<Pick<SimModel, "trustsPages">>;
  /** Keeps what happened, line by line. */
  readonly note: (what: () => string) => void;
  /** Log lines are noted as well. */
  readonly logs: boolean;
}

/** One control-plane process. */
export interface SimControlPlane {
  readonly thread: SimThread;
  readonly link: SimLink;
  readonly plane: ControlPlane;
  readonly metrics: Metrics;
  /** Its clients' connections, their ends of which close when it dies. */
  readonly connections: Set<Duplex>;
}

/**
 * A whole system in one process, under virtual time: control planes, nodes, scale target; everything but time, randomness,
 * the wires, the engines and the processes is the product.
 *
 *   opened -> (requests, faults) -> closed
 */
export class SimWorld {
  readonly time = new VirtualTime();
  readonly fabric = new SimFabric();
  readonly network: SimNetwork;
  readonly controlPlanes: SimControlPlane[] = [];
  readonly target: SimTarget;
  readonly #fleets: FleetWatch[] = [];
  readonly #scenario: Scenario;
  readonly #options: WorldOptions;

  constructor(scenario: Scenario, options: WorldOptions) {
    const { seed } = scenario;
    this.#scenario = scenario;
    this.#options = options;
    this.network = new SimNetwork(this.time, namedRandom(seed, "network"), scenario.weather, options.note);
    const starts = namedRandom(seed, "starts");
    const base = simModel(new SimThread(this.time), this.fabric);
    const site: SimSite = {
      time: this.time,
      network: this.network,
      model: {
        ...base,
        ...options.planted,
        vocabSize: options.model.vocabSize,
        contextLength: options.model.contextLength,
        stepMs: scenario.stepMs,
        rowMs: scenario.stepMs / 100,
        transferMs: scenario.transferMs,
        eosAt: endsAt,
      },
      pool: scenario.pool,
      startMs: () => between(starts, ...scenario.startMs),
      random: (name) => namedRandom(seed, name),
      logger: (name) => this.#logger(name),
    };
    this.target = new SimTarget({
      ...{ site, naming: scenario.naming, note: options.note },
      random: namedRandom(seed, "target"),
      drainMs: DRAIN_MS,
      onEnd: (rankId) => {
        for (const fleet of this.#fleets) fleet.rankEnded(rankId);
      },
    });
    for (let number = 0; number < scenario.controlPlanes; number++) this.#openControlPlane(number);
  }

  async start(): Promise<void> {
    for (const { plane } of this.controlPlanes) void plane.start();
    await this.time.run(this.time.nowMs + 200, () => false);
  }

  /** A control plane dies: its clients' connections end, its requests have nobody. */
  crashControlPlane(number: number): void {
    const gone = this.controlPlanes[number]!;
    gone.thread.die();
    gone.link.break(false);
    this.network.forget(gone.link);
    for (const connection of gone.connections) connection.destroy();
  }

  /** A client's connection reaches a control plane. */
  connect(number: number, connection: Duplex): void {
    const { thread, plane, connections } = this.controlPlanes[number]!;
    if (thread.dead) {
      connection.destroy();
      return;
    }
    connections.add(connection);
    connection.once("close", () => connections.delete(connection));
    thread.post(() => plane.accept(connection));
  }

  async close(): Promise<void> {
    for (const { plane, thread } of this.controlPlanes) if (!thread.dead) void plane[Symbol.asyncDispose]();
    await this.time.run(this.time.nowMs + 10_000, () => false);
  }

  /** The first decides how many workers there are; all of them hear when one has ended. */
  #openControlPlane(number: number): void {
    const { seed } = this.#scenario;
    const name = `gateway-${number}`;
    const thread = new SimThread(this.time);
    const random = namedRandom(seed, name);
    const { bus, link } = this.network.connect(name, "control-plane", thread, random, silentObserver);
    const metrics = createMetrics({ processMetrics: false });
    const gatewayId = GatewayId.parse(name);
    const logger = this.#logger(name);
    const fleet = new FleetWatch({ bus, clock: thread, logger, gatewayId });
    this.#fleets.push(fleet);
    const context = {
      ...{ clock: thread, random, logger, signal: new AbortController().signal },
      stop: () => {},
      fail: () => {},
      tellParent: () => {},
    };
    const plane = new ControlPlane(this.#config(), context, {
      ...{ metrics, bus, gatewayId, fleet, tenancy: openTenancy, models: new Map([[SIM_MODEL, this.#options.model]]) },
      home: {
        target: this.target,
        alone: true,
        start: (onLead) => onLead(number === 0),
        yield: async () => {},
      },
    });
    this.controlPlanes.push({ thread, link, plane, metrics, connections: new Set() });
  }

  #logger(name: string): Logger {
    if (!this.#options.logs) return silentLogger;
    return openLogger({
      process: name,
      level: "debug",
      format: "json",
      write: (line) => {
        const { level, message, process: who, time, ...fields } = JSON.parse(line) as Record<string, unknown>;
        void time;
        this.#options.note(() => `${who} ${level}: ${message} ${JSON.stringify(fields)}`);
      },
    });
  }

  #config(): ControlPlaneConfig {
    const { minWorkers: min, maxWorkers: max, idleMs, localPrefillTokens } = this.#scenario;
    const limits = { min, max };
    return {
      tracing: { endpoint: null, sample: 0 },
      logLevel: "silent",
      drainMs: DRAIN_MS,
      gateway: {
        host: null,
        port: 0,
        bodyLimitBytes: 1_048_576,
        maxN: 1,
        maxThinkers: 4,
        requestMs: REQUEST_MS,
        responses: { maxAgeMs: 3_600_000, maxBytes: 1_048_576 },
        files: { maxAgeMs: 3_600_000, maxBytes: 16_777_216, maxFileBytes: 4_194_304 },
        batchLines: 4,
      },
      keysFile: null,
      models: new Map(),
      stateFolder: "",
      tls: null,
      nats: { url: "", user: null, password: null, tls: null },
      scaling: {
        ...{ prefill: limits, decode: limits, ttftGoalMs: TTFT_GOAL_MS, tpotGoalMs: 0 },
        keepAlive: { fixedMs: idleMs, learned: true },
      },
      kube: null,
      ranks: { prefill: 1, decode: 1 },
      groups: { leastRanks: 1, sparePerRank: 0, balanceMs: 0 },
      localPrefillTokens,
      mostWaiting: 10_000,
      waitMs: WAIT_MS,
      workerEnvironment: {},
    };
  }
}
