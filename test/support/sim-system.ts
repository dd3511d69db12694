import type { Bus } from "#protocol/bus/bus.ts";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import type { MargayError } from "#protocol/errors.ts";
import { GatewayId, ModelName, type RankId, RequestId, rankIdOf, WorkerId } from "#protocol/ids.ts";
import type { Generation } from "#protocol/request.ts";
import type { Role } from "#protocol/worker.ts";
import { silentLogger } from "#service/logger.ts";
import { createMetrics } from "#service/metrics.ts";
import type { WorkerConfig } from "#service/worker-config.ts";
import { FleetWatch } from "../../control-plane/fleet/fleet-watch.ts";
import { RequestBoard } from "../../control-plane/flow/request-board.ts";
import { Flow, type Settled } from "../../control-plane/flow/request-flow.ts";
import { WaitingRoom } from "../../control-plane/flow/waiting-room.ts";
import { GroupBalancer } from "../../control-plane/groups/group-balancer.ts";
import { GroupFormer } from "../../control-plane/groups/group-former.ts";
import { simWorkerConfig } from "../../control-plane/simulate/sim-worker-config.ts";
import { createDecodeNode, type DecodeNode } from "../../decode-node/decode-node.ts";
import { type SimEngine, simEngineOpener } from "../../native/binding/sim-engine.ts";
import { SimFabric } from "../../native/binding/sim-fabric.ts";
import { type SimModel, simModel } from "../../native/binding/sim-model.ts";
import { createPrefillNode, type PrefillNode, type PrefillNodeParts } from "../../prefill-node/prefill-node.ts";
import { FakeClock, fakeRandom } from "./fake-clock.ts";

export const SIM_MODEL_NAME = ModelName.parse("sim");

/** One rank of the system: a whole node over a simulated engine. */
export interface SimRank {
  readonly role: Role;
  readonly rankId: RankId;
  readonly bus: Bus;
  readonly engine: SimEngine;
  readonly node: PrefillNode | DecodeNode;
  /** Blocks that are neither free nor cached. */
  held(): number;
}

/** A request as its client sees it. */
export interface SimCall {
  readonly tokens: number[];
  readonly abort: AbortController;
  settled: Settled | null;
  error: MargayError | null;
}

/**
 * A whole system in one process under virtual time: control plane without its HTTP edge, bus in memory, nodes over simulated
 * engines whose pages travel over one fabric. Everything but the clock, the engines and the wire is the product.
 */
export class SimSystem {
  readonly clock = new FakeClock();
  readonly fabric = new SimFabric();
  readonly network: MemoryNetwork;
  readonly metrics = createMetrics({ processMetrics: false });
  readonly ranks: SimRank[] = [];
  readonly failures: unknown[] = [];
  readonly fleet: FleetWatch;
  readonly waitingRoom: WaitingRoom;
  readonly board: RequestBoard;
  readonly flow: Flow;
  readonly former: GroupFormer;
  readonly balancer: GroupBalancer;
  /** One that knows nothing of what this one did, as of a control plane that began anew. */
  readonly anotherBalancer: () => GroupBalancer;
  readonly #model: SimModel;
  #calls = 0;

  constructor(
    options: {
      readonly seed?: number;

      localPrefillTokens?: number;
      readonly model?: Partial<SimModel>;
    } = {},
  ) {
    const { clock, metrics } = this;
    const logger = silentLogger;
    this.network = new MemoryNetwork(clock, fakeRandom(options.seed ?? 1));
    this.#model = simModel(clock, this.fabric, options.model);
    const bus = this.network.connect("control-plane");
    const gatewayId = GatewayId.parse("gw");
    const waitMs = 120_000;
    const fleet = new FleetWatch({ bus, clock, logger, gatewayId });
    this.fleet = fleet;
    const random = fakeRandom(5);
    this.former = new GroupFormer({ bus, clock, random, logger, metrics, fleet, rules: { leastRanks: 1 } });
    const rules = { sparePerRank: 2, balanceMs: 0 };
    this.anotherBalancer = () => new GroupBalancer({ bus, clock, logger, metrics, fleet, rules });
    this.balancer = this.anotherBalancer();
    const waitingRoom = new WaitingRoom({
      ...{ fleet, clock, metrics, waitMs },
      mostWaiting: 1_000,
      whyNone: () => null,
      waitingElsewhere: () => 0,
      onArrival: () => {},
      onEmpty: () => {},
    });
    this.waitingRoom = waitingRoom;
    const board = new RequestBoard({ bus, clock, metrics, gatewayId });
    this.board = board;
    this.flow = new Flow({
      ...{ bus, clock, logger, metrics, gatewayId, fleet, waitingRoom, board, waitMs },
      localPrefillTokens: options.localPrefillTokens ?? 0,
      ttftGoalMs: 1_000,
    });
    fleet.start();
    this.former.start();
    board.start();
  }

  async prefill(name: string): Promise<SimRank> {
    return this.#join("prefill", name, createPrefillNode);
  }

  async decode(name: string): Promise<SimRank> {
    return this.#join("decode", name, createDecodeNode);
  }

  /** One of several ranks of a worker. */
  async rank(role: Role, name: string, rank: number, ranks: number): Promise<SimRank> {
    if (role === "prefill") return this.#join(role, name, createPrefillNode, rank, ranks);
    return this.#join(role, name, createDecodeNode, rank, ranks);
  }

  /** A worker of several ranks. */
  async worker(role: Role, name: string, ranks: number): Promise<readonly SimRank[]> {
    const all: SimRank[] = [];
    for (let rank = 0; rank < ranks; rank++) all.push(await this.rank(role, name, rank, ranks));
    return all;
  }

  call(generation: Generation, deadlineMs = 600_000): SimCall {
    const call: SimCall = { tokens: [], abort: new AbortController(), settled: null, error: null };
    const request = {
      requestId: RequestId.parse(`call${this.#calls++}`),
      model: SIM_MODEL_NAME,
      share: { tenant: "local", weight: 1, urgency: 0 },
      generation,
      maxWaitMs: null,
      deadlineMs: this.clock.now() + deadlineMs,
      signal: call.abort.signal,
    };
    const listener = {
      onProgress: () => {},
      onTokens: (tokens: Int32Array) => {
        call.tokens.push(...tokens);
        return "more" as const;
      },
    };
    this.flow.serve(request, listener).then(
      (settled) => {
        call.settled = settled;
      },
      (error: MargayError) => {
        call.error = error;
      },
    );
    return call;
  }

  /** As SIGKILL: the rank says and hears nothing any more. Its pool is gone with it. */
  kill(rank: SimRank): void {
    this.ranks.splice(this.ranks.indexOf(rank), 1);
    this.network.disconnect(rank.bus);
    void rank.engine.close();
  }

  /** As SIGSTOP: the rank neither steps nor speaks nor hears, until it is woken. */
  stop(rank: SimRank): void {
    this.network.disconnect(rank.bus);
    rank.engine.group?.stop();
  }

  wake(rank: SimRank): void {
    rank.engine.group?.resume();
    this.network.reconnect(rank.bus);
  }

  /** Ranks of a role that are ready, by the fleet's knowledge. */
  ready(role: Role): number {
    return [...this.fleet.snapshot.ranks.values()].filter((rank) => rank.role === role && rank.state === "ready")
      .length;
  }

  /** Moves time until `holds`. */
  async until(holds: () => boolean, limitMs = 120_000): Promise<void> {
    for (let ms = 0; !holds(); ms += 5) {
      if (ms > limitMs) throw new Error(`did not come true within ${limitMs} ms`);
      await this.clock.advance(5);
    }
  }

  async ended(calls: readonly SimCall[]): Promise<void> {
    await this.until(() => calls.every((call) => call.settled !== null || call.error !== null));
  }

  /** The result of something that needs time to pass. */
  async settled<T>(work: Promise<T>): Promise<T> {
    let over = false;
    const done = work.finally(() => {
      over = true;
    });
    await this.until(() => over);
    return done;
  }

  /** What is held five seconds later, in words. */
  async held(): Promise<readonly string[]> {
    await this.clock.advance(5_000);
    const held: string[] = this.failures.map((failure) => `a node failed: ${String(failure)}`);
    for (const rank of this.ranks) {
      const broken = rank.engine.checkInvariants();
      if (broken !== null) held.push(`${rank.rankId}: ${broken}`);
      if (rank.held() > 0) held.push(`${rank.rankId} holds ${rank.held()} blocks`);
      if (rank.engine.stats().sequences > 0) held.push(`${rank.rankId} has open sequences`);
      const own = this.fleet.snapshot.ranks.get(rank.rankId);
      if (own !== undefined && own.ownRequests + own.ownPrefillTokens > 0)
        held.push(`${rank.rankId} counts as occupied`);
    }
    if (this.board.size + this.waitingRoom.waiting(SIM_MODEL_NAME) > 0)
      held.push("the control plane waits for something");
    return held;
  }

  async #join(
    role: Role,
    name: string,
    create: (parts: PrefillNodeParts) => PrefillNode | DecodeNode,
    number = 0,
    ranks = 1,
  ): Promise<SimRank> {
    const workerId = WorkerId.parse(name);
    const rankId = rankIdOf(workerId, number);
    const bus = this.network.connect(role);
    const open = simEngineOpener(this.#model);
    let opened: SimEngine | null = null;
    const node = create({
      config: configOf(workerId, number, ranks),
      bus,
      clock: this.clock,
      random: fakeRandom(this.ranks.length + 11),
      logger: silentLogger,
      metrics: createMetrics({ processMetrics: false }),
      openEngine: async (options, listener) => {
        opened = await open(options, listener);
        return opened;
      },
      healthUrl: "http://127.0.0.1:1",
      pid: 1,
      bornMs: 0,
      signal: new AbortController().signal,
      stop: () => {},
      fail: (error) => void this.failures.push(error),
    });
    let started = false;
    void node.start().then(() => {
      started = true;
    });
    await this.until(() => started);
    const engine = opened as SimEngine | null;
    if (engine === null) throw new Error("the node opened no engine");
    const held = (): number => {
      const { free, cached, ...inUse } = engine.stats().blocks;
      return Object.values(inUse).reduce((a, b) => a + b, 0);
    };
    const rank: SimRank = { role, rankId, bus, engine, node, held };
    this.ranks.push(rank);
    return rank;
  }
}

function configOf(workerId: WorkerId, rank: number, ranks: number): WorkerConfig {
  const group = {
    ...{ ranks, exchangeHost: "127.0.0.1", exchangePort: 0 },
    exchangeTransport: "auto" as const,
    exchangePayload: "bf16" as const,
    exchangeDeadlineMs: 1_000,
  };
  return simWorkerConfig(
    { workerId, modelName: SIM_MODEL_NAME, rank, ranks },
    { kvBlocks: 128, ...(ranks === 1 ? {} : { group }) },
  );
}
