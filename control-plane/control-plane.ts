import type { Duplex } from "node:stream";
import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import type { ModelDemand } from "#protocol/demand.ts";
import type { GatewayId, ModelName, RankId } from "#protocol/ids.ts";
import { connectBus } from "#service/connect-bus.ts";
import { Grammars } from "#service/grammar/grammars.ts";
import { createMetrics, type Metrics } from "#service/metrics.ts";
import { credentialsFile, natsCredentials } from "#service/nats-credentials.ts";
import type { Service, ServiceContext } from "#service/run-service.ts";
import { Tracing } from "#service/tracing/tracing.ts";
import { loadServedModel, type ServedModel } from "./chat/served-model.ts";
import type { ControlPlaneConfig } from "./config.ts";
import { FleetWatch } from "./fleet/fleet-watch.ts";
import { RequestBoard } from "./flow/request-board.ts";
import { Flow } from "./flow/request-flow.ts";
import { WaitingRoom } from "./flow/waiting-room.ts";
import { EdgeTls } from "./gateway/edge-tls.ts";
import { Gateway } from "./gateway/gateway.ts";
import { GroupBalancer } from "./groups/group-balancer.ts";
import { GroupFormer } from "./groups/group-former.ts";
import { OperatorDesk } from "./operator-desk.ts";
import { DecisionLog } from "./scaling/decision-log.ts";
import { DemandExchange } from "./scaling/demand-exchange.ts";
import { PauseMemory } from "./scaling/pause-memory.ts";
import { Scaler } from "./scaling/scaler.ts";
import { StartWatch } from "./scaling/start-watch.ts";
import { Keyring } from "./tenancy/keyring.ts";
import { Ledger } from "./tenancy/ledger.ts";
import { Limiter } from "./tenancy/limiter.ts";
import { KeyedTenancy, openTenancy, type Tenancy } from "./tenancy/tenancy.ts";
import { kubeHome, processHome, type WorkerHome } from "./worker-home.ts";

/** Where others serve too, clients get so long to change over to them before anybody is refused. */
const LINGER_MS = 2_000;
/** After the last answer: time for cancellations and acknowledgements to leave. */
const CLOSE_MS = 1_000;
/** A grammar that takes longer to compile is refused. */
const VET_MS = 400;

/** What a control plane stands on. `ControlPlane.create` makes the ground of a process. */
export interface ControlPlaneGround {
  readonly gatewayId: GatewayId;
  readonly models: ReadonlyMap<ModelName, ServedModel>;
  readonly metrics: Metrics;
  readonly bus: Bus;
  readonly fleet: FleetWatch;
  /** Where workers come from. */
  readonly home: WorkerHome;
  readonly tenancy: Tenancy;
  /** None: plain HTTP. */
  readonly tls?: EdgeTls;
}

/**
 * The one place where the parts of a control plane meet.
 *
 *   created -> started (listening, workers at their minimum) -> draining -> disposed
 */
export class ControlPlane implements Service {
  readonly #config: ControlPlaneConfig;
  readonly #context: ServiceContext;
  readonly #models: ReadonlyMap<ModelName, ServedModel>;
  readonly #bus: Bus;
  readonly #fleet: FleetWatch;
  readonly #former: GroupFormer;
  readonly #balancer: GroupBalancer;
  readonly #waitingRoom: WaitingRoom;
  readonly #board: RequestBoard;
  readonly #flow: Flow;
  readonly #home: WorkerHome;
  readonly #tenancy: Tenancy;
  readonly #tracing: Tracing;
  readonly #demand: DemandExchange;
  readonly #scaler: Scaler;
  readonly #starts: StartWatch;
  readonly #decisions: DecisionLog;
  readonly #gateway: Gateway;
  readonly #grammars = new Map<ModelName, Grammars>();
  readonly #desk: OperatorDesk;
  #asked: readonly Subscription[] = [];

  static async create(config: ControlPlaneConfig, context: ServiceContext): Promise<ControlPlane> {
    const models = new Map<ModelName, ServedModel>();
    for (const [name, folder] of config.models) models.set(name, await loadServedModel(name, folder));
    const { clock, random, logger } = context;
    const tls = config.tls === null ? {} : { tls: await EdgeTls.open(config.tls, clock, logger) };
    const gatewayId = `gw-${random.hex(4)}` as GatewayId;
    const telling = { teller: "control-plane", models: [...config.models.keys()] } as const;
    const metrics = createMetrics({ processMetrics: true, telling });
    const keyring =
      config.keysFile === null ? null : await Keyring.open({ path: config.keysFile, clock, logger, metrics });
    const bus = await connectBus({
      ...config.nats,
      role: "control-plane",
      name: gatewayId,
      clock,
      random,
      logger,
      metrics,
    });
    const fleet = new FleetWatch({ bus, clock, logger, gatewayId });
    const onEnd = (rankId: RankId): void => fleet.rankEnded(rankId);
    const home =
      config.kube === null
        ? processHome(config, context, metrics, await natsUsers(config, context), onEnd)
        : await kubeHome(config.kube, config.ranks, context, metrics, gatewayId, onEnd);
    const tenancy =
      keyring === null
        ? openTenancy
        : new KeyedTenancy({
            ...{ keyring, clock, metrics },
            limiter: new Limiter({ bus, clock, random, gatewayId }),
            ledger: new Ledger({ bus, clock, logger, metrics }),
          });
    return new ControlPlane(config, context, { gatewayId, models, metrics, bus, fleet, home, tenancy, ...tls });
  }

  constructor(config: ControlPlaneConfig, context: ServiceContext, ground: ControlPlaneGround) {
    const { clock, random, logger } = context;
    const { waitMs, mostWaiting, localPrefillTokens } = config;
    const { gatewayId, models, metrics, bus, fleet, home, tenancy } = ground;
    this.#config = config;
    this.#context = context;
    this.#models = models;
    this.#bus = bus;
    this.#fleet = fleet;
    this.#home = home;
    this.#tenancy = tenancy;
    this.#former = new GroupFormer({ bus, clock, random, logger, metrics, fleet, rules: config.groups });
    this.#balancer = new GroupBalancer({ bus, clock, logger, metrics, fleet, rules: config.groups });
    const waitingRoom = new WaitingRoom({
      ...{ fleet, clock, metrics, mostWaiting, waitMs },
      whyNone: (model) => home.target.lastFailure(model),
      waitingElsewhere: (model) => this.#demand.waitingElsewhere(model),
      onArrival: () => {
        this.#scaler.look();
        this.#demand.tellSoon();
      },
      onEmpty: () => this.#demand.tellSoon(),
    });
    this.#waitingRoom = waitingRoom;
    this.#board = new RequestBoard({ bus, clock, metrics, gatewayId });
    this.#tracing = new Tracing({
      ...{ clock, random, logger, metrics },
      config: config.tracing,
      resource: { "service.name": "margay-control-plane", "service.instance.id": gatewayId },
    });
    const flow = new Flow({
      tracing: this.#tracing,
      ...{ bus, clock, logger, metrics, gatewayId, fleet, waitingRoom, localPrefillTokens, waitMs },
      ttftGoalMs: config.scaling.ttftGoalMs,
      board: this.#board,
    });
    this.#flow = flow;
    const names = [...models.keys()];
    this.#demand = new DemandExchange({
      ...{ bus, clock, gatewayId },
      models: names,
      own: (model) => this.#ownDemand(model),
      onWaiting: () => this.#scaler.look(),
      onServed: (model, share) => this.#waitingRoom.chargeElsewhere(model, share),
    });
    this.#decisions = new DecisionLog({ bus, clock, gatewayId });
    this.#scaler = new Scaler({
      ...{ clock, logger, metrics },
      target: home.target,
      models: names,
      rules: config.scaling,
      demand: (model) => this.#demand.demand(model),
      traffic: (model) => this.#demand.traffic(model),
      usualStartMs: (model, role) => this.#starts.usualMs(model, role),
      log: this.#decisions,
      memory: new PauseMemory(bus),
      snapshot: () => fleet.snapshot,
    });
    this.#starts = new StartWatch({ clock, metrics, target: home.target, snapshot: () => fleet.snapshot });
    for (const [name, { folder, vocabSize }] of models) {
      this.#grammars.set(name, new Grammars({ clock, logger, folder, vocabSize, vetMs: VET_MS, maskMs: VET_MS }));
    }
    this.#desk = new OperatorDesk({
      ...{ bus, clock, gatewayId, fleet, demand: this.#demand, scaler: this.#scaler, starts: this.#starts },
      ...{ decisions: this.#decisions, target: home.target, models: names },
    });
    this.#gateway = new Gateway({
      ...{ clock, random, logger, metrics, models, flow, tenancy, bus, gatewayId },
      outlook: (model) => this.#starts.outlook(model),
      vet: async (model, grammar, ends) => {
        const grammars = this.#grammars.get(model.name)!;
        const fault = await grammars.vet(grammar);
        return { fault, first: fault === null ? await grammars.first(grammar, ends) : null };
      },
      config: config.gateway,
      ...(ground.tls === undefined ? {} : { tls: ground.tls }),
      tracing: this.#tracing,
      way: (id) => flow.recent.find(id),
      latest: (tenant, most) => flow.recent.latest(tenant, most),
      operator: this.#desk,
      readiness: () => ({ ready: bus.state === "connected", checks: { bus: bus.state === "connected" } }),
    });
    metrics.onCollect(() => this.#collect(metrics));
  }

  async start(): Promise<void> {
    const { logger, tellParent } = this.#context;
    this.#fleet.start();
    this.#board.start();
    this.#tenancy.start();
    await this.#gateway.start();
    this.#asked = this.#desk.open();
    await this.#bus.flush(CLOSE_MS);
    this.#demand.start();
    this.#starts.start();
    this.#decisions.start();
    this.#home.start((leads) => this.#lead(leads));
    if (!this.#loopbackOrKeyed())
      logger.warn(
        { url: this.#gateway.url },
        "requests need no key here, and others can reach this address: set MARGAY_KEYS_FILE",
      );
    logger.info({ url: this.#gateway.url, models: [...this.#models.keys()] }, "listening");
    tellParent({ kind: "ready", url: this.#gateway.url, models: [...this.#models.keys()] });
  }

  /** What it keeps for requests; all zero when none is served. */
  get holdings(): Readonly<Record<"waiting" | "attempts" | "seats", number>> {
    let waiting = 0;
    for (const model of this.#models.keys()) waiting += this.#waitingRoom.waiting(model);
    let seats = 0;
    for (const { ownRequests } of this.#fleet.snapshot.ranks.values()) seats += ownRequests;
    return { waiting, attempts: this.#board.size, seats };
  }

  /** A client's connection that did not come through the socket. */
  accept(connection: Duplex): void {
    this.#gateway.accept(connection);
  }

  /** New requests are refused, running ones end, then the workers. */
  async drain(deadlineMs: number): Promise<void> {
    const { clock } = this.#context;
    await this.#home.yield();
    await this.#gateway.drain(deadlineMs - clock.now(), this.#home.alone ? 0 : LINGER_MS);
    this.#lead(false);
    this.#waitingRoom.close();
    await this.#home.target.close(Math.max(CLOSE_MS, deadlineMs - clock.now()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#lead(false);
    await this.#gateway[Symbol.asyncDispose]();
    for (const grammars of this.#grammars.values()) await grammars.close();
    await this.#home.yield();
    await this.#home.target.close(CLOSE_MS);
    this.#demand.stop();
    await this.#tenancy.stop();
    await this.#tracing.close();
    this.#starts.stop();
    this.#decisions.stop();
    for (const open of this.#asked) open.unsubscribe();
    this.#board.stop();
    this.#fleet.stop();
    await this.#bus.close(CLOSE_MS);
  }

  /** What only one of several control planes may do. */
  #lead(leads: boolean): void {
    for (const one of [this.#scaler, this.#former, this.#balancer]) {
      if (leads) one.start();
      else one.stop();
    }
  }

  #loopbackOrKeyed(): boolean {
    const { keysFile, gateway } = this.#config;
    return keysFile !== null || gateway.host === null || /^(localhost|127\..*|::1)$/.test(gateway.host);
  }

  #ownDemand(model: ModelName): Omit<ModelDemand, "model"> {
    const lastMs = this.#flow.lastActiveMs(model);
    return {
      waiting: this.#waitingRoom.waiting(model),
      oldestWaitMs: this.#waitingRoom.oldestWaitMs(model),
      waitingTokens: this.#waitingRoom.waitingTokens(model),
      traffic: this.#flow.traffic(model),
      missing: this.#waitingRoom.missing(model),
      running: this.#flow.running(model),
      idleMs: lastMs === null ? null : this.#context.clock.monotonic() - lastMs,
      served: this.#waitingRoom.served(model),
    };
  }

  #collect(metrics: Metrics): void {
    const states = ["loading", "forming", "ready", "draining", "lost"] as const;
    for (const role of ["prefill", "decode"] as const) {
      for (const state of states) {
        const ranks = [...this.#fleet.snapshot.ranks.values()].filter((r) => r.role === role && r.state === state);
        metrics.gauge("margay_workers", { role, state }, ranks.length);
      }
    }
    for (const model of this.#models.keys()) {
      const waiting = this.#waitingRoom.waiting(model);
      metrics.gauge("margay_waiting_requests", { model }, waiting);
      metrics.gauge("margay_running_requests", { model }, this.#flow.running(model) - waiting);
    }
  }
}

/** The NATS user of each worker role: its own on a server that `margay up` configured, else the one given to us. */
async function natsUsers(config: ControlPlaneConfig, { random }: ServiceContext) {
  const user = (name: string | null, password: string | null): Record<string, string> =>
    name === null || password === null ? {} : { MARGAY_NATS_USER: name, MARGAY_NATS_PASSWORD: password };
  if (config.nats.user !== "control-plane") {
    const same = user(config.nats.user, config.nats.password);
    return { prefill: same, decode: same };
  }
  const passwords = await natsCredentials(credentialsFile(config.stateFolder), random);
  return { prefill: user("prefill", passwords.prefill), decode: user("decode", passwords.decode) };
}
