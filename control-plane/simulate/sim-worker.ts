import type { Bus } from "#protocol/bus/bus.ts";
import { silentObserver } from "#protocol/bus/bus.ts";
import { type ModelName, rankIdOf, type WorkerId } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import type { Random } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import { createMetrics } from "#service/metrics.ts";
import type { WorkerConfig } from "#service/worker-config.ts";
import { createDecodeNode, type DecodeNode } from "../../decode-node/decode-node.ts";
import type { EngineListener, EngineOptions, EngineStats } from "../../native/binding/native.ts";
import { SimEngine } from "../../native/binding/sim-engine.ts";
import { type SimModel, simModel } from "../../native/binding/sim-model.ts";
import { createPrefillNode, type PrefillNode } from "../../prefill-node/prefill-node.ts";
import type { TargetRank, TargetWorker } from "../scaling/scale-target.ts";
import type { SimLink, SimNetwork } from "./sim-network.ts";
import { SimThread } from "./sim-thread.ts";
import { simWorkerConfig } from "./sim-worker-config.ts";
import type { VirtualTime } from "./virtual-time.ts";

/** What the worker processes of a simulation share. */
export interface SimSite {
  readonly time: VirtualTime;
  readonly network: SimNetwork;
  /** What the engines pretend to be; each gets the clock of its own native thread. */
  readonly model: Omit<SimModel, "clock">;
  readonly pool: { readonly slots: number; readonly kvBlocks: number; readonly maxStepTokens: number };
  /** Time a new process needs before its engine is open. */
  readonly startMs: () => number;
  readonly random: (name: string) => Random;
  readonly logger: (name: string) => Logger;
}

/** After the drain time, before a process is killed. */
const KILL_SLACK_MS = 3_000;

/** An engine whose word on its pool may be false. */
class SimWorkerEngine extends SimEngine {
  /** Says that every block is to be had. */
  boasts = false;

  override stats(): EngineStats {
    const stats = super.stats();
    return this.boasts ? { ...stats, blocksAvailable: this.info.kvBlocks } : stats;
  }
}

/**
 * One worker process: a whole node, its engine, and the threads of both.
 *
 *   starting -> serving -> draining -> ended        any of them -> crashed
 */
export class SimWorker implements TargetWorker {
  readonly workerId: WorkerId;
  readonly model: ModelName;
  readonly role: Role;
  readonly ranks: readonly TargetRank[];
  readonly runs = true;
  /** JavaScript, and what native threads do. */
  readonly js: SimThread;
  readonly native: SimThread;
  readonly link: SimLink;
  /** Its engine could not go on: not a mistake of the node. */
  engineFailed = false;
  stopping = false;
  /** It ended with its whole host: nothing tells so. */
  onHost = false;
  /** What its node could not go on after. */
  failure: unknown = null;
  readonly #site: SimSite;
  readonly #bus: Bus;
  readonly #onEnd: (worker: SimWorker) => void;
  readonly #abort = new AbortController();
  #node: PrefillNode | DecodeNode | null = null;
  #engine: SimWorkerEngine | null = null;
  #ended = false;

  constructor(
    site: SimSite,
    identity: { readonly workerId: WorkerId; readonly model: ModelName; readonly role: Role; readonly kvPort: number },
    /** Several processes may bear one name after another. */
    process: string,
    onEnd: (worker: SimWorker) => void,
  ) {
    this.#site = site;
    this.#onEnd = onEnd;
    this.workerId = identity.workerId;
    this.model = identity.model;
    this.role = identity.role;
    this.ranks = [{ rankId: rankIdOf(identity.workerId, 0), instance: process }];
    this.js = new SimThread(site.time);
    this.native = new SimThread(site.time);
    const random = site.random(process);
    const { bus, link } = site.network.connect(process, this.role, this.js, random, silentObserver);
    this.#bus = bus;
    this.link = link;
    this.js.after(site.startMs(), () => void this.#start(random, identity.kvPort));
  }

  get engine(): SimWorkerEngine | null {
    return this.#engine;
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** Blocks that are neither free nor cached. */
  get held(): number {
    if (this.#engine === null) return 0;
    const { free, cached, ...inUse } = this.#engine.stats().blocks;
    return Object.values(inUse).reduce((a, b) => a + b, 0);
  }

  /** Asked to end its work within `graceMs`; killed a little after that. */
  stop(graceMs: number): void {
    if (this.#ended) return;
    this.#site.time.after(graceMs + KILL_SLACK_MS, () => this.crash("process"));
    if (this.stopping) return;
    this.stopping = true;
    this.js.post(() => void this.#drain(this.js.now() + graceMs));
  }

  /** `process`: whoever talks to it learns at once; `host`: nobody does. */
  crash(what: "process" | "host"): void {
    if (this.#ended) return;
    this.onHost = what === "host";
    this.js.die();
    this.native.die();
    this.link.break(what === "host");
    const engine = this.#engine;
    if (what === "process") {
      void engine?.close();
      this.#site.network.forget(this.link);
    }
    this.#end();
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#onEnd(this);
  }

  async #start(random: Random, kvPort: number): Promise<void> {
    const parts = {
      config: this.#config(kvPort),
      bus: this.#bus,
      clock: this.js,
      random,
      logger: this.#site.logger(this.link.name),
      metrics: createMetrics({ processMetrics: false }),
      openEngine: async (options: EngineOptions, listener: EngineListener) => this.#open(options, listener),
      healthUrl: "http://127.0.0.1:1",
      pid: 1,
      bornMs: 0,
      signal: this.#abort.signal,
      stop: (_reason: string, deadlineMs: number) => this.stop(deadlineMs - this.js.now()),
      fail: (error: unknown) => {
        if (!this.engineFailed) this.failure = error;
        this.crash("process");
      },
    };
    this.#node = this.role === "prefill" ? createPrefillNode(parts) : createDecodeNode(parts);
    try {
      await this.#node.start();
    } catch (error) {
      // A control plane refuses whom its deadlines would mean something else to.
      if (!this.stopping && this.js.aheadMs === 0) this.failure = error;
      this.crash("process");
    }
  }

  /** Its own thread computes and moves pages on, also while JavaScript stands still. */
  #open(options: EngineOptions, listener: EngineListener): SimWorkerEngine {
    const model = simModel(this.native, this.#site.model.fabric, this.#site.model);
    const engine = new SimWorkerEngine(
      options,
      {
        onStep: (result) => this.js.post(() => listener.onStep(result)),
        onEvents: (events) => this.js.post(() => listener.onEvents(events)),
        onFatal: (message) => this.js.post(() => listener.onFatal(message)),
      },
      model,
    );
    this.#engine = engine;
    return engine;
  }

  async #drain(deadlineMs: number): Promise<void> {
    this.#abort.abort(new Error("the process is stopping"));
    await this.#node?.drain(deadlineMs);
    await this.#node?.[Symbol.asyncDispose]();
    await this.#bus.close(1_000);
    this.crash("process");
  }

  #config(kvPort: number): WorkerConfig {
    const given = { workerId: this.workerId, modelName: this.model, drainMs: 5_000 };
    return simWorkerConfig(given, { ...this.#site.pool, kvPort });
  }
}
