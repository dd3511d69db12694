import type { Traffic } from "#protocol/demand.ts";
import type { ModelName } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import type { Clock, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import type { FleetSnapshot } from "../fleet/fleet.ts";
import { CapacityPlanner, type CapacityView } from "./capacity-planner.ts";
import type { DecisionLog } from "./decision-log.ts";
import { type GapHistogram, gapsTogether, keepAliveOf, LEAST_GAP_MS, NO_GAPS, withGap } from "./keep-alive.ts";
import type { PauseMemory } from "./pause-memory.ts";
import {
  type Asked,
  type Counts,
  type Demand,
  NOTHING_ASKED,
  planWorkers,
  type RoleState,
  type ScalingRules,
} from "./planner.ts";
import type { ScaleTarget, TargetRank, TargetWorker } from "./scale-target.ts";
import { NOBODY_STARVES, type Starvation, withLook } from "./starvation.ts";
import { healthOf, type RankHistory, withSighting } from "./worker-health.ts";

const TICK_MS = 100;
/** What lies between two looks counts as seen for at most so long: a process that was kept from looking saw nothing. */
const SEEN_MS = 2 * TICK_MS;
/** The plan of capacity is made so often. */
const PLAN_MS = 2_000;
/** A start that was never seen is taken to last so long. */
const UNKNOWN_START_MS = 60_000;
/** What was learned of pauses is kept so often: a leader that is killed takes so much of it along. */
const KEEP_MS = 60_000;
const ROLES = ["prefill", "decode"] as const;

export interface ScalerParts {
  readonly clock: Clock;
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly target: ScaleTarget;
  readonly models: readonly ModelName[];
  readonly rules: ScalingRules;
  readonly demand: (model: ModelName) => Demand;
  /** What came at each control plane; null: not all of them were heard lately. */
  readonly traffic: (model: ModelName) => ReadonlyMap<string, Traffic> | null;
  /** How long workers usually take to start; null: not known. */
  readonly usualStartMs: (model: ModelName, role: Role) => number | null;
  readonly log: DecisionLog;
  readonly memory: PauseMemory;
  readonly snapshot: () => FleetSnapshot;
}

/** What is remembered of a model while this control plane decides. */
interface Watched {
  readonly capacity: CapacityPlanner;
  gaps: GapHistogram;
  /** The last request began or ended then; null: none did. */
  activeMs: number | null;
  busy: boolean;
  plannedMs: number;
  starvation: Starvation;
  lookedMs: number;
}

/** Of one leadership: whether the pauses learned before it are among its own, and whether there are some that are not kept. */
interface LeaderPauses {
  recalled: boolean;
  changed: boolean;
  askedMs: number;
}

/**
 * Decides how many workers are wanted: looks at the demand ten times a second and tells the target; every few seconds
 * plans what the traffic needs; has workers replaced that never began or fell silent for good.
 *
 *   created -> (started -> stopped)*
 */
export class Scaler {
  readonly #parts: ScalerParts;
  /** By rank and instance. */
  #histories: ReadonlyMap<string, RankHistory> = new Map();
  readonly #watched = new Map<ModelName, Watched>();
  #timer: Timer | null = null;
  #pauses: LeaderPauses | null = null;

  constructor(parts: ScalerParts) {
    this.#parts = parts;
  }

  start(): void {
    this.#histories = new Map();
    this.#watched.clear();
    this.#pauses = { recalled: false, changed: false, askedMs: Number.NEGATIVE_INFINITY };
    this.#timer ??= this.#parts.clock.every(TICK_MS, () => this.look());
    this.look();
  }

  stop(): void {
    this.#timer?.cancel();
    this.#timer = null;
    if (this.#pauses !== null) void this.#keepPauses(this.#pauses);
    this.#pauses = null;
  }

  /** What the target was asked for last; null while it does not know itself. */
  wanted(model: ModelName): Counts | null {
    const { target } = this.#parts;
    const [prefill, decode] = [target.wanted(model, "prefill"), target.wanted(model, "decode")];
    return prefill === null || decode === null ? null : { prefill, decode };
  }

  /** Looks at once: a request that just began waiting need not wait for the next tick. */
  look(): void {
    if (this.#timer === null) return;
    this.#lookAtWorkers();
    for (const model of this.#parts.models) this.#lookAt(model);
    if (this.#pauses !== null && this.#parts.rules.keepAlive.learned) this.#lookAtPauses(this.#pauses);
  }

  /** What the leader before learned is asked for until it is known, then what this one learned is added to it. */
  #lookAtPauses(pauses: LeaderPauses): void {
    const nowMs = this.#parts.clock.monotonic();
    if (nowMs - pauses.askedMs < KEEP_MS) return;
    pauses.askedMs = nowMs;
    void (pauses.recalled ? this.#keepPauses(pauses) : this.#recallPauses(pauses));
  }

  async #recallPauses(pauses: LeaderPauses): Promise<void> {
    try {
      const known = await this.#parts.memory.recall();
      if (this.#pauses !== pauses) return;
      for (const model of this.#parts.models) {
        const watched = this.#watch(model);
        watched.gaps = gapsTogether(known.get(model) ?? NO_GAPS, watched.gaps);
      }
      pauses.recalled = true;
    } catch (error) {
      this.#parts.logger.debug({ error }, "what was learned of pauses is not known yet");
    }
  }

  async #keepPauses(pauses: LeaderPauses): Promise<void> {
    if (!pauses.recalled || !pauses.changed) return;
    pauses.changed = false;
    try {
      pauses.changed = !(await this.#parts.memory.keep(
        new Map([...this.#watched].map(([model, { gaps }]) => [model, gaps])),
      ));
    } catch (error) {
      pauses.changed = true;
      this.#parts.logger.debug({ error }, "what was learned of pauses could not be kept");
    }
  }

  #lookAtWorkers(): void {
    const { clock, logger, metrics, target, snapshot } = this.#parts;
    const nowMs = clock.monotonic();
    const fleet = snapshot();
    const histories = new Map<string, RankHistory>();
    for (const { workerId, role, ranks, stopping, runs } of target.workers()) {
      // One that waits for a place to run would wait again as another one.
      for (const rank of stopping || !runs ? [] : ranks) {
        const { rankId } = rank;
        const history = withSighting(this.#histories.get(keyOf(rank)), fleet, rankId, nowMs);
        histories.set(keyOf(rank), history);
        const health = healthOf(history, nowMs);
        if (health !== "never-ready" && health !== "hung") continue;
        logger.error({ rank: rankId, health }, "a rank is of no use; it is replaced");
        metrics.count("margay_worker_restarts_total", { role });
        target.replace(workerId, rankId);
      }
    }
    this.#histories = histories;
  }

  #lookAt(model: ModelName): void {
    const { clock, metrics, target, rules, demand, snapshot } = this.#parts;
    const watched = this.#watch(model);
    watched.capacity.look(snapshot());
    const before = this.wanted(model);
    // Unknown is not zero: what there is stays until it is known what there is.
    if (before === null) return;
    const nowMs = clock.monotonic();
    const asked = demand(model);
    const { gaps } = watched;
    followGaps(watched, asked, nowMs);
    if (watched.gaps !== gaps && this.#pauses !== null) this.#pauses.changed = true;
    const keepAlive = keepAliveOf(rules.keepAlive, watched.gaps, this.#startMs(model));
    const planned = nowMs - watched.plannedMs < PLAN_MS ? null : this.#plan(model, watched, before, asked);
    if (planned !== null) this.#tellPlan(model, planned, keepAlive.reason);
    const state = { prefill: this.#state(model, "prefill", before), decode: this.#state(model, "decode", before) };
    watched.starvation = withLook(watched.starvation, asked, state, Math.min(SEEN_MS, nowMs - watched.lookedMs));
    watched.lookedMs = nowMs;
    const plan = planned === null ? NOTHING_ASKED : askedBy(planned);
    const after = planWorkers(rules, asked, state, keepAlive, plan, watched.starvation);
    for (const role of ROLES) {
      const { count, reason } = after[role];
      if (count !== before[role]) this.#decide(model, role, before[role], count, reason ?? "");
      if (before[role] === 0 && count > 0 && asked.waiting > 0) metrics.count("margay_cold_starts_total", {});
      metrics.gauge("margay_wanted_workers", { model, role }, count);
      // Told every time: the target replaces what it lost.
      target.scale(model, role, count);
    }
  }

  #watch(model: ModelName): Watched {
    let watched = this.#watched.get(model);
    if (watched === undefined) {
      const capacity = new CapacityPlanner(model, this.#parts.rules);
      watched = {
        ...{ capacity, gaps: NO_GAPS, activeMs: null, busy: false, plannedMs: Number.NEGATIVE_INFINITY },
        ...{ starvation: NOBODY_STARVES, lookedMs: this.#parts.clock.monotonic() },
      };
      this.#watched.set(model, watched);
    }
    return watched;
  }

  #state(model: ModelName, role: Role, wanted: Counts): RoleState {
    const live = this.#parts.target
      .workers()
      .filter((one) => one.model === model && one.role === role && !one.stopping);
    return {
      wanted: wanted[role],
      // One without a place to run has spent nothing yet: idleness may take it back.
      starting: this.#starting(live.filter(({ runs }) => runs)),
      unmade: Math.max(0, wanted[role] - live.filter(({ runs }) => runs).length),
    };
  }

  #plan(model: ModelName, watched: Watched, wanted: Counts, demand: Demand): CapacityView {
    const { clock, snapshot, traffic } = this.#parts;
    const nowMs = clock.monotonic();
    watched.plannedMs = nowMs;
    return watched.capacity.plan({
      ...{ nowMs, demand, wanted, fleet: snapshot(), traffic: traffic(model), coldStartMs: this.#startMs(model) },
    });
  }

  #startMs(model: ModelName): number {
    const { usualStartMs } = this.#parts;
    const known = ROLES.map((role) => usualStartMs(model, role)).filter((ms) => ms !== null);
    return known.length === 0 ? UNKNOWN_START_MS : Math.max(...known);
  }

  #decide(model: ModelName, role: Role, from: number, to: number, reason: string): void {
    const { logger, log, metrics } = this.#parts;
    logger.info({ model, role, from, to, reason }, "scaling workers");
    metrics.count("margay_scaling_decisions_total", { model, role, direction: to > from ? "grow" : "shrink" });
    log.tell({ kind: "scaling-decision", model, role, from, to, reason });
  }

  #tellPlan(model: ModelName, { state: { prefill, decode }, signals }: CapacityView, keepAlive: string): void {
    const told = ({ groups, reason }: typeof prefill) => ({ groups, reason });
    this.#parts.log.tell({
      ...{ kind: "scaling-plan", model, keepAlive, prefill: told(prefill), decode: told(decode) },
      from: {
        arrivalsPerSecond: signals.arrivals?.short ?? null,
        arrivalsPerSecondLong: signals.arrivals?.long ?? null,
        prefillSeconds: signals.prefillSeconds,
        queuedSeconds: signals.queuedSeconds,
        oldestWaitMs: signals.oldestWaitMs,
        late: signals.late,
        streams: signals.streams,
        streamSeconds: signals.streamSeconds,
        streamsPerGroup: signals.streamsPerGroup,
        coldStartMs: signals.coldStartMs,
      },
    });
  }

  #starting(workers: readonly TargetWorker[]): number {
    const nowMs = this.#parts.clock.monotonic();
    return workers.filter(({ ranks }) => ranks.every((rank) => this.#isStarting(rank, nowMs))).length;
  }

  #isStarting(rank: TargetRank, nowMs: number): boolean {
    const history = this.#histories.get(keyOf(rank));
    return history === undefined || healthOf(history, nowMs) === "starting";
  }
}

/** A pause that ended since the last look tells how long to keep workers. */
function followGaps(watched: Watched, { running, waiting, idleMs }: Demand, nowMs: number): void {
  const activeMs = idleMs === null ? null : nowMs - idleMs;
  const gapMs = watched.activeMs === null || activeMs === null ? 0 : activeMs - watched.activeMs;
  if (!watched.busy && gapMs >= LEAST_GAP_MS) watched.gaps = withGap(watched.gaps, gapMs);
  watched.activeMs = activeMs;
  watched.busy = running > 0 || waiting > 0;
}

/** What the plan asks for: a role that it holds is left alone. */
function askedBy({ state }: CapacityView): Asked {
  const of = (role: Role): Asked[Role] => (state[role].held ? null : state[role]);
  return { prefill: of("prefill"), decode: of("decode") };
}

function keyOf({ rankId, instance }: TargetRank): string {
  return `${rankId} ${instance}`;
}
