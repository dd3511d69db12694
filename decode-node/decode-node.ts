import type { Engine, EngineEvent, EngineListener, EngineOptions, StepResult } from "#native";
import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import {
  ReserveKv,
  ReserveReply,
  ResumeReply,
  ResumeStream,
  StartDecode,
  StartReply,
  TokenAcks,
  TokenBatch,
} from "#protocol/decode.ts";
import type { KvEndpoint } from "#protocol/kv.ts";
import { Cancel, CancelReply } from "#protocol/prefill.ts";
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
import { DecodeRequests } from "./decode-requests.ts";
import { TokenStream } from "./token-stream.ts";

export interface DecodeNodeParts {
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
  readonly requests: DecodeRequests;
  readonly stream: TokenStream;
  readonly subscriptions: readonly Subscription[];
}

/**
 * One decode rank: wires engine, bus and requests together.
 *
 *   created -> loading the model -> introduced -> ready -> draining -> disposed
 */
export class DecodeNode implements Service {
  readonly #parts: DecodeNodeParts;
  #engine: Engine | null = null;
  #agent: WorkerAgent | null = null;
  #running: Running | null = null;

  constructor(parts: DecodeNodeParts) {
    this.#parts = parts;
  }

  async start(): Promise<void> {
    const { config, bus, clock, random, metrics, openEngine, logger, signal } = this.#parts;
    const { workerId, rankId } = workerNames(config, "decode", random);
    const engine = await openEngine({ ...config.engine, role: "decode", rankId }, this.#listener());
    this.#engine = engine;
    const { info } = engine;
    for (const warning of info.warnings) logger.warn({}, warning);
    const { modelHash, layout, vocabSize, contextLength, attentions, pageBytes } = info;
    const endpoint: KvEndpoint = {
      ...(config.kvAdvertise ?? { host: config.engine.kvHost, port: info.kvPort }),
      hostKey: info.hostKey,
    };
    const agent = new WorkerAgent({
      ...this.#parts,
      identity: {
        workerId,
        rankId,
        rank: 0,
        ranks: 1,
        role: "decode",
        model: { name: config.modelName, modelHash, layout, vocabSize, contextLength, attentions, pageBytes },
        kvEndpoint: endpoint,
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
    const stream = new TokenStream(rankId, epoch, clock, (owner, batch) =>
      bus.publish(subjects.tokens(owner), TokenBatch, batch),
    );
    const requests = new DecodeRequests({ ...this.#parts, engine, rankId, epoch, endpoint, stream });
    const subscriptions = [
      bus.respond(subjects.reserve(rankId), ReserveKv, ReserveReply, (message) => {
        agent.isOwnerAlive(message.head.owner);
        return requests.reserve(message);
      }),
      bus.respond(subjects.start(rankId), StartDecode, StartReply, (message) => requests.start(message)),
      bus.respond(subjects.resume(rankId), ResumeStream, ResumeReply, (message) => stream.resume(message)),
      bus.respond(subjects.cancel(rankId), Cancel, CancelReply, async ({ head }) => ({
        kind: "cancelled" as const,
        known: await requests.cancel(head),
      })),
      bus.subscribe(subjects.acks(rankId), TokenAcks, (acks) => stream.acknowledge(acks)),
    ];
    this.#running = { engine, agent, requests, stream, subscriptions };
    metrics.onCollect(() => this.#report());
    agent.begin();
    agent.setState("ready");
    logger.info({ rankId, epoch, backend: info.backend, isa: info.isa, blocks: info.kvBlocks, endpoint }, "ready");
  }

  async drain(deadlineMs: number): Promise<void> {
    this.#agent?.setState("draining");
    await this.#running?.requests.drain(deadlineMs);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const subscription of this.#running?.subscriptions ?? []) subscription.unsubscribe();
    this.#running?.requests.stop();
    this.#running?.stream.close();
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
      prefillTokensPerSecond: 0,
      blocksTotal: info.kvBlocks,
      blocksAvailable: blocks.free + blocks.cached,
    };
  }

  #report(): void {
    if (this.#running === null) return;
    const { metrics } = this.#parts;
    reportEngine(metrics, "decode", this.#running.engine.stats());
    metrics.gauge("margay_worker_requests", { role: "decode" }, this.#running.requests.size);
  }
}
