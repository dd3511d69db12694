import type { ModelName } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import type { Clock, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import type { FleetSnapshot } from "../fleet/fleet.ts";
import { type Counts, type Demand, planWorkers, type RoleState, type ScalingRules } from "./planner.ts";
import type { ScaleTarget } from "./scale-target.ts";

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
 * Owns how many workers are wanted: looks at the demand ten times a second and tells the target.
 *
 *   created -> started -> stopped
 */
export class Scaler {
  readonly #parts: ScalerParts;
  readonly #wanted = new Map<ModelName, Counts>();
  #timer: Timer | null = null;

  constructor(parts: ScalerParts) {
    this.#parts = parts;
  }

  start(): void {
    this.#timer = this.#parts.clock.every(TICK_MS, () => this.look());
    this.look();
  }

  stop(): void {
    this.#timer?.cancel();
    this.#timer = null;
  }

  wanted(model: ModelName): Counts {
    return this.#wanted.get(model) ?? { prefill: 0, decode: 0 };
  }

  /** Looks at once: a request that just began waiting need not wait for the next tick. */
  look(): void {
    for (const model of this.#parts.models) this.#lookAt(model);
  }

  #lookAt(model: ModelName): void {
    const { logger, metrics, target, rules, demand, snapshot } = this.#parts;
    const before = this.wanted(model);
    const fleet = snapshot();
    const state = (role: Role): RoleState => ({ wanted: before[role], ready: readyWorkers(fleet, model, role) });
    const asked = demand(model);
    const after = planWorkers(rules, asked, { prefill: state("prefill"), decode: state("decode") });
    this.#wanted.set(model, after);
    for (const role of ["prefill", "decode"] as const) {
      if (after[role] !== before[role]) {
        logger.info({ model, role, from: before[role], to: after[role], waiting: asked.waiting }, "scaling workers");
        if (before[role] === 0 && asked.waiting > 0) metrics.count("margay_cold_starts_total", {});
      }
      // Told every time: the target replaces what it lost.
      target.scale(model, role, after[role]);
    }
  }
}

/** Workers of which every rank is ready. */
function readyWorkers(fleet: FleetSnapshot, model: ModelName, role: Role): number {
  const ready = new Set<string>();
  for (const rank of fleet.ranks.values()) {
    if (rank.model.name === model && rank.role === role && rank.state === "ready") ready.add(rank.workerId);
  }
  return ready.size;
}
