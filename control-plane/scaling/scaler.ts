import type { ModelName } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import type { Clock, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import type { FleetSnapshot } from "../fleet/fleet.ts";
import { type Counts, type Demand, planWorkers, type RoleState, type ScalingRules } from "./planner.ts";
import type { ScaleTarget, TargetRank, TargetWorker } from "./scale-target.ts";
import { healthOf, type RankHistory, withSighting } from "./worker-health.ts";

const TICK_MS = 100;

export interface ScalerParts {
  readonly clock: Clock;
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly target: ScaleTarget;
  readonly models: readonly ModelName[];
  readonly rules: ScalingRules;
  readonly demand: (model: ModelName) => Demand;
  readonly snapshot: () => FleetSnapshot;
}

/**
 * Decides how many workers are wanted: looks at the demand ten times a second and tells the target; has workers replaced
 * that never began or fell silent for good.
 *
 *   created -> (started -> stopped)*
 */
export class Scaler {
  readonly #parts: ScalerParts;
  /** By rank and instance. */
  #histories: ReadonlyMap<string, RankHistory> = new Map();
  #timer: Timer | null = null;

  constructor(parts: ScalerParts) {
    this.#parts = parts;
  }

  start(): void {
    this.#histories = new Map();
    this.#timer ??= this.#parts.clock.every(TICK_MS, () => this.look());
    this.look();
  }

  stop(): void {
    this.#timer?.cancel();
    this.#timer = null;
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
    const { logger, metrics, target, rules, demand } = this.#parts;
    const before = this.wanted(model);
    // Unknown is not zero: what there is stays until it is known what there is.
    if (before === null) return;
    const state = (role: Role): RoleState => {
      const live = target.workers().filter((one) => one.model === model && one.role === role && !one.stopping);
      return {
        wanted: before[role],
        // One without a place to run has spent nothing yet: idleness may take it back.
        starting: this.#starting(live.filter(({ runs }) => runs)),
        unmade: Math.max(0, before[role] - live.filter(({ runs }) => runs).length),
      };
    };
    const asked = demand(model);
    const after = planWorkers(rules, asked, { prefill: state("prefill"), decode: state("decode") });
    for (const role of ["prefill", "decode"] as const) {
      if (after[role] !== before[role]) {
        logger.info({ model, role, from: before[role], to: after[role], waiting: asked.waiting }, "scaling workers");
        if (before[role] === 0 && asked.waiting > 0) metrics.count("margay_cold_starts_total", {});
      }
      // Told every time: the target replaces what it lost.
      target.scale(model, role, after[role]);
    }
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

function keyOf({ rankId, instance }: TargetRank): string {
  return `${rankId} ${instance}`;
}
