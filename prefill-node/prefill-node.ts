import type { Engine, EngineEvent, EngineListener, EngineOptions, StepResult } from "#native";
import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import { Cancel, CancelReply, PrefillDone, PrefillFailed, PrefillReply, PrefillWork } from "#protocol/prefill.ts";
import { subjects } from "#protocol/subjects.ts";
import type { Load } from "#protocol/worker.ts";
import type { Clock, Random } from "#service/clock.ts";
import { reportEngine } from "#service/engine-metrics.ts";
import type { Readiness } from "#service/health-server.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import type { Service } from "#service/run-service.ts";
import { WorkerAgent } from "#service/worker-agent.ts";
import { type WorkerConfig, workerNames } from "#service/worker-config.ts";
import { PrefillRequests } from "./prefill-requests.ts";

export interface PrefillNodeParts {
  readonly config: WorkerConfig;
  readonly bus: Bus;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly openEngine: (options: EngineOptions, listener: EngineListener) => Promise<Engine>;
  readonly healthUrl: string;
  readonly pid: number;
  /** Ends a start that is still under way. */
  readonly signal: AbortSignal;
  /** Somebody asked this rank to drain by `deadlineMs` (epoch milliseconds) and to exit. */
  readonly stop: (reason: string, deadlineMs: number) => void;
  /** The rank cannot do its work any more. */
  readonly fail: (error: unknown) => void;
}

/** What exists once the rank has its epoch. */
interface Running {
  readonly engine: Engine;
  readonly agent: WorkerAgent;
  readonly requests: PrefillRequests;
  readonly subscriptions: readonly Subscription[];
}

/**
 * One prefill rank: wires engine, bus and requests together.
 *
 *   created -> loading the model -> introduced -> ready -> draining -> disposed
 */
export class PrefillNode implements Service {
  readonly #parts: PrefillNodeParts;
  #engine: Engine | null = null;
  #agent: WorkerAgent | null = null;
  #running: Running | null = null;

  constructor(parts: PrefillNodeParts) {
    this.#parts = parts;
  }

  async start(): Promise<void> {
    const { config, bus, random, metrics, openEngine, logger, signal } = this.#parts;
    const { workerId, rankId } = workerNames(config, "prefill", random);
    const engine = await openEngine({ ...config.engine, role: "prefill", rankId }, this.#listener());
    this.#engine = engine;
    const { info } = engine;
    for (const warning of info.warnings) logger.warn({}, warning);
    const { modelHash, layout, vocabSize, contextLength, attentions, pageBytes } = info;
    const agent = new WorkerAgent({
      ...this.#parts,
      identity: {
        workerId,
        rankId,
        rank: 0,
        ranks: 1,
        role: "prefill",
        model: { name: config.modelName, modelHash, layout, vocabSize, contextLength, attentions, pageBytes },
        kvEndpoint: null,
        healthUrl: this.#parts.healthUrl,
        pid: this.#parts.pid,
      },
      host: {
        load: () => this.#load(),
        prefixHashes: () => engine.prefixHashes(),
        onDrain: (deadlineMs) => this.#parts.stop("the control plane asked for it", deadlineMs),
        onOwnerSilent: (owner) => this.#running?.requests.endOwner(owner),
      },
    });
    this.#agent = agent;
    const epoch = await agent.introduce(signal);
    engine.setEpoch(epoch);
    const requests = new PrefillRequests({
      ...this.#parts,
      engine,
      rankId,
      epoch,
      tell(owner, outcome) {
        const schema = outcome.kind === "prefill-done" ? PrefillDone : PrefillFailed;
        bus.publish(subjects.prefillOutcome(owner), schema, outcome);
      },
    });
    const subscriptions = [
      bus.respond(subjects.prefill(rankId), PrefillWork, PrefillReply, (work) => {
        agent.isOwnerAlive(work.head.owner);
        return requests.accept(work);
      }),
      bus.respond(subjects.cancel(rankId), Cancel, CancelReply, async ({ head }) => ({
        kind: "cancelled" as const,
        known: await requests.cancel(head),
      })),
    ];
    this.#running = { engine, agent, requests, subscriptions };
    metrics.onCollect(() => this.#report());
    agent.begin();
    agent.setState("ready");
    logger.info({ rankId, epoch, backend: info.backend, isa: info.isa, blocks: info.kvBlocks }, "ready");
  }

  async drain(deadlineMs: number): Promise<void> {
    this.#agent?.setState("draining");
    await this.#running?.requests.drain(deadlineMs);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const subscription of this.#running?.subscriptions ?? []) subscription.unsubscribe();
    this.#running?.requests.stop();
    this.#running = null;
    await this.#agent?.leave();
    await this.#engine?.close();
  }

  readiness(): Readiness {
    const checks = {
      engine: this.#engine !== null,
      bus: this.#parts.bus.state === "connected",
      accepting: this.#agent?.state === "ready",
    };
    return { ready: Object.values(checks).every(Boolean), checks };
  }

  #listener(): EngineListener {
    return {
      onStep: (result: StepResult) => this.#running?.requests.onStep(result),
      onEvents: (events: readonly EngineEvent[]) => {
        for (const event of events) {
          if (event.kind === "kv") this.#agent?.publishKv(event.stored, event.removed);
          else this.#running?.requests.onEvent(event);
        }
      },
      onFatal: (message: string) => {
        // The goodbye lets the control plane place the requests elsewhere without waiting for a silence.
        void this.#agent?.leave();
        this.#parts.fail(new Error(`the engine failed: ${message}`));
      },
    };
  }

  #load(): Load {
    const { info } = this.#engine!;
    const { blocks } = this.#engine!.stats();
    return {
      requests: this.#running?.requests.size ?? 0,
      maxRequests: info.slots,
      pendingPrefillTokens: this.#running?.requests.pendingTokens ?? 0,
      prefillTokensPerSecond: this.#running?.requests.tokensPerSecond ?? 0,
      blocksTotal: info.kvBlocks,
      blocksAvailable: blocks.free + blocks.cached,
    };
  }

  #report(): void {
    if (this.#running === null) return;
    const { metrics } = this.#parts;
    reportEngine(metrics, "prefill", this.#running.engine.stats());
    metrics.gauge("margay_worker_requests", { role: "prefill" }, this.#running.requests.size);
  }
}
