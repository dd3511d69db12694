import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import { GroupOrder, GroupReply } from "#protocol/group-orders.ts";
import type { GatewayId, RankId } from "#protocol/ids.ts";
import type { KvEndpoint } from "#protocol/kv.ts";
import type { ExchangeEndpoint } from "#protocol/membership.ts";
import type { ModelCard } from "#protocol/model-card.ts";
import { subjects } from "#protocol/subjects.ts";
import { type Load, NO_RANK_WORK, type Role } from "#protocol/worker.ts";
import type { Clock, Random } from "./clock.ts";
import { type EngineCounters, type ExchangeCounters, reportEngine, reportExchange } from "./engine-metrics.ts";
import { type GroupLostEvent, GroupSeat, type SeatEngine } from "./group-seat.ts";
import type { Readiness } from "./health-server.ts";
import type { Logger } from "./logger.ts";
import type { Metrics } from "./metrics.ts";
import type { Service } from "./run-service.ts";
import { type NativeTracer, Tracer, type TraceSpan } from "./tracer.ts";
import type { Tracing } from "./tracing/tracing.ts";
import { WorkerAgent } from "./worker-agent.ts";
import { numericsOf, type WorkerConfig, workerNames } from "./worker-config.ts";

/** What surrounds a node, whatever its role. */
export interface WorkerNodeParts {
  readonly config: WorkerConfig;
  readonly bus: Bus;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly metrics: Metrics;
  /** None: nothing is traced. */
  readonly tracing?: Tracing;
  readonly healthUrl: string;
  readonly pid: number;
  /** When the process began, on the clock's count. */
  readonly bornMs: number;
  /** Ends a start that is still under way. */
  readonly signal: AbortSignal;
  /** Somebody asked this rank to drain by `deadlineMs` (epoch milliseconds) and to exit. */
  readonly stop: (reason: string, deadlineMs: number) => void;
  /** The rank cannot do its work any more. */
  readonly fail: (error: unknown) => void;
}

/** The part of an engine that is the same work for every role. */
export interface NodeEngine extends NativeTracer {
  readonly info: Omit<ModelCard, "name" | "numerics"> & {
    readonly backend: string;
    readonly isa: string;
    readonly kvBlocks: number;
    readonly slots: number;
    readonly hostKey: string;
    readonly warnings: readonly string[];
    /** What opening took. */
    readonly openMs: Readonly<Record<"kernels" | "weights" | "pool", number>>;
  };
  setEpoch(epoch: number): void;
  stats(): EngineCounters;
  prefixHashes(): Uint8Array;
  close(): Promise<void>;
}

/** The part of an engine that makes it one of several ranks. */
export interface NodeGroup extends SeatEngine {
  readonly experts: number;
  readonly exchangePort: number;
  exchangeStats(): ExchangeCounters;
}

/** What an engine tells: results of steps, events, and its own end. */
export interface NodeListener<Result, Event> {
  onStep(result: Result): void;
  onEvents(events: readonly Event[]): void;
  onFatal(message: string): void;
}

/** The requests of a rank. */
export interface NodeRequests<Result, Event> {
  readonly load: Pick<Load, "requests" | "pendingPrefillTokens" | "prefillTokensPerSecond" | "work">;
  onStep(result: Result): void;
  onEvent(event: Event): void;
  endOwner(owner: GatewayId): void;
  /** The group of ranks is lost, and a step with it: what was being computed ends, to be placed again. */
  endAll(detail: string): void;
  drain(deadlineMs: number): Promise<void>;
  /** Plans nothing more, ends all timers. */
  stop(): void;
}

/** An introduced rank. */
export interface Rank {
  readonly rankId: RankId;
  readonly epoch: number;
  /** Begins to watch whether this owner of requests is alive. */
  readonly watch: (owner: GatewayId) => void;
  /** False while this one of several ranks is in no group: it takes no requests. */
  readonly isJoined: () => boolean;
  readonly tracer: Tracer;
}

/** What is different about a role. */
export interface NodeRole<Engine extends NodeEngine, Result, Event> {
  readonly role: Role;
  open(rankId: RankId, listener: NodeListener<Result, Event>): Promise<Engine>;
  /** null: the rank is its worker's only one. */
  group(engine: Engine): NodeGroup | null;
  /** Where the rank takes KV; null: it takes none. */
  endpoint(engine: Engine): KvEndpoint | null;
  /** Begins to answer the messages of the role. */
  serve(
    engine: Engine,
    rank: Rank,
  ): { readonly requests: NodeRequests<Result, Event>; readonly subscriptions: readonly Subscription[] };
}

/**
 * One rank: wires engine, bus, agent, its seat in a group and requests together.
 *
 *   created -> loading the model -> introduced -> (forming <->) ready -> draining -> disposed
 */
export class WorkerNode<Engine extends NodeEngine, Result, Event extends { readonly kind: string }> implements Service {
  readonly #parts: WorkerNodeParts;
  readonly #role: NodeRole<Engine, Result, Event>;
  #engine: Engine | null = null;
  #tracer: Tracer | null = null;
  #agent: WorkerAgent | null = null;
  #startTold = false;
  #seat: GroupSeat | null = null;
  #orders: Subscription | null = null;
  /** When the engine began to open, and when it was open. */
  #openedMs: readonly [number, number] = [0, 0];
  #serving: ReturnType<NodeRole<Engine, Result, Event>["serve"]> | null = null;

  constructor(parts: WorkerNodeParts, role: NodeRole<Engine, Result, Event>) {
    this.#parts = parts;
    this.#role = role;
  }

  async start(): Promise<void> {
    const { config, random, metrics, logger, healthUrl, pid, signal } = this.#parts;
    const { role } = this.#role;
    const { workerId, rankId } = workerNames(config, role, random);
    const beganMs = this.#parts.clock.monotonic();
    const engine = await this.#role.open(rankId, this.#listener());
    this.#engine = engine;
    this.#openedMs = [beganMs, this.#parts.clock.monotonic()];
    const tracer = new Tracer(engine, this.#parts.clock);
    this.#tracer = tracer;
    const group = this.#role.group(engine);
    const { warnings, backend, isa, kvBlocks, ...info } = engine.info;
    for (const warning of warnings) logger.warn({}, warning);
    const { modelHash, layout, vocabSize, contextLength, attentions, pageBytes } = info;
    const named = { name: config.modelName, numerics: numericsOf(config.engine) };
    const model = { ...named, modelHash, layout, vocabSize, contextLength, attentions, pageBytes };
    const kvEndpoint = this.#role.endpoint(engine);
    const agent = new WorkerAgent({
      ...this.#parts,
      identity: {
        ...{ workerId, rankId, rank: config.rank, ranks: config.ranks, role, model, kvEndpoint, healthUrl, pid },
        exchange: group === null ? null : exchangeEndpoint(config, group.exchangePort, engine.info.hostKey),
        experts: group?.experts ?? 0,
      },
      host: {
        load: () => this.#load(engine),
        prefixHashes: () => engine.prefixHashes(),
        onDrain: (deadlineMs) => this.#parts.stop("the control plane asked for it", deadlineMs),
        onOwnerSilent: (owner) => this.#serving?.requests.endOwner(owner),
      },
    });
    this.#agent = agent;
    const epoch = await agent.introduce(signal);
    engine.setEpoch(epoch);
    this.#serving = this.#role.serve(engine, {
      rankId,
      epoch,
      watch: (owner) => void agent.isOwnerAlive(owner),
      isJoined: () => this.#seat?.isJoined ?? true,
      tracer,
    });
    metrics.onCollect(() => this.#report());
    agent.begin();
    if (group === null) {
      agent.setState("ready");
      this.#noteStart();
    } else this.#takeSeat(group, agent, rankId, epoch);
    logger.info({ rankId, epoch, backend, isa, blocks: kvBlocks, kvEndpoint }, agent.state);
  }

  /** From here on the control plane may order this rank into a group. */
  #takeSeat(group: NodeGroup, agent: WorkerAgent, rankId: RankId, rankEpoch: number): void {
    const { bus, clock, logger } = this.#parts;
    const seat = new GroupSeat({
      ...{ engine: group, clock, logger, rankId, rankEpoch, experts: group.experts },
      onChange: (membership, lost) => {
        agent.setMembership(membership, lost);
        if (membership !== null) this.#noteStart();
      },
      onLost: (detail) => this.#serving?.requests.endAll(detail),
    });
    this.#seat = seat;
    this.#orders = bus.respond(subjects.group(rankId), GroupOrder, GroupReply, (order) => seat.obey(order));
    agent.setMembership(null, null);
  }

  /** The first time that this rank takes requests: what it took to get there. */
  #noteStart(): void {
    if (this.#startTold || this.#engine === null) return;
    this.#startTold = true;
    const { clock, logger, metrics, bornMs } = this.#parts;
    const [beganMs, openedMs] = this.#openedMs;
    const { kernels, weights, pool } = this.#engine.info.openMs;
    const steps = { process: beganMs - bornMs, kernels, weights, pool, registered: clock.monotonic() - openedMs };
    for (const [step, ms] of Object.entries(steps) as [keyof typeof steps, number][]) {
      metrics.gauge("margay_start_seconds", { role: this.#role.role, step }, ms / 1000);
    }
    const told = Object.fromEntries(Object.entries(steps).map(([step, ms]) => [step, Number(ms.toFixed(1))]));
    logger.info({ steps: told }, "started, milliseconds by step");
  }

  async drain(deadlineMs: number): Promise<void> {
    this.#agent?.setState("draining");
    await this.#serving?.requests.drain(deadlineMs);
    // The other ranks may still need this one's experts.
    await this.#seat?.leave(Math.max(0, deadlineMs - this.#parts.clock.now()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const subscription of this.#serving?.subscriptions ?? []) subscription.unsubscribe();
    this.#orders?.unsubscribe();
    this.#serving?.requests.stop();
    this.#serving = null;
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

  /** What the process does in the next `ms` milliseconds; null while it is not ready or recorded already. */
  async trace(ms: number): Promise<readonly TraceSpan[] | null> {
    return (await this.#tracer?.record(this.#parts.clock.sleep(ms))) ?? null;
  }

  #listener(): NodeListener<Result, Event> {
    return {
      onStep: (result) => this.#tracer?.time("plan", () => this.#serving?.requests.onStep(result)),
      onEvents: (events) => {
        for (const event of events) {
          if (isCacheChange(event)) this.#agent?.publishKv(event);
          else if (isGroupLost(event)) this.#seat?.onGroupLost(event);
          else this.#serving?.requests.onEvent(event);
        }
      },
      onFatal: (message) => {
        // The goodbye lets the control plane place the requests elsewhere without waiting for a silence.
        void this.#agent?.leave();
        this.#parts.fail(new Error(`the engine failed: ${message}`));
      },
    };
  }

  #load(engine: Engine): Load {
    const { info } = engine;
    const { blocksAvailable, blocks, bytesSent, bytesReceived } = engine.stats();
    const requests = {
      requests: 0,
      pendingPrefillTokens: 0,
      prefillTokensPerSecond: 0,
      work: NO_RANK_WORK,
      ...this.#serving?.requests.load,
    };
    return {
      ...requests,
      maxRequests: info.slots,
      ...{ blocksTotal: info.kvBlocks, blocksAvailable, blocks, kvBytesMoved: bytesSent + bytesReceived },
    };
  }

  #report(): void {
    if (this.#engine === null || this.#serving === null) return;
    const { role } = this.#role;
    reportEngine(this.#parts.metrics, role, this.#engine.stats());
    this.#parts.metrics.gauge("margay_worker_requests", { role }, this.#serving.requests.load.requests);
    const group = this.#role.group(this.#engine);
    if (group !== null) reportExchange(this.#parts.metrics, role, group.exchangeStats());
  }
}

function exchangeEndpoint(
  { engine, exchangeAdvertise }: WorkerConfig,
  port: number,
  hostKey: string,
): ExchangeEndpoint {
  return { ...(exchangeAdvertise ?? { host: engine.group?.exchangeHost ?? engine.kvHost, port }), hostKey };
}

interface CacheChange {
  readonly kind: "kv";
  readonly stored: Uint8Array;
  readonly removed: Uint8Array;
}

function isCacheChange<E extends { readonly kind: string }>(event: E | CacheChange): event is CacheChange {
  return event.kind === "kv";
}

function isGroupLost<E extends { readonly kind: string }>(
  event: E | (GroupLostEvent & { kind: "group-lost" }),
): event is GroupLostEvent & { kind: "group-lost" } & E {
  return event.kind === "group-lost";
}
