import type { Traffic } from "#protocol/demand.ts";
import type { ModelName } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import { type FleetSnapshot, type Rank, ranksOf } from "../fleet/fleet.ts";
import {
  CAPACITY_CONSTANTS,
  type CapacitySignals,
  type CapacityState,
  newRolePlan,
  planCapacity,
} from "./capacity-plan.ts";
import { capacitySignals } from "./capacity-signals.ts";
import type { Counts, Demand, ScalingRules } from "./planner.ts";
import { StepTimes } from "./step-times.ts";
import { TrafficMeter } from "./traffic-meter.ts";

/** What is known of a model at one moment. */
export interface ModelView {
  readonly nowMs: number;
  readonly demand: Demand;
  /** By control plane; null: not all of them were heard lately. */
  readonly traffic: ReadonlyMap<string, Traffic> | null;
  readonly fleet: FleetSnapshot;
  readonly wanted: Counts;
  readonly coldStartMs: number;
}

export interface CapacityView {
  readonly state: CapacityState;
  readonly signals: CapacitySignals;
}

/**
 * Owns what was learned of one model: its traffic, its step times by role, and the plan made of them.
 *
 * C1 what is not known, or not lately, is told to the plan as such: it holds the role that depends on it
 */
export class CapacityPlanner {
  readonly #model: ModelName;
  readonly #rules: ScalingRules;
  readonly #steps: Readonly<Record<Role, StepTimes>> = { prefill: new StepTimes(), decode: new StepTimes() };
  #meter: TrafficMeter | null = null;
  #state: CapacityState = { prefill: newRolePlan(0), decode: newRolePlan(0) };

  constructor(model: ModelName, rules: ScalingRules) {
    this.#model = model;
    this.#rules = rules;
  }

  /** Follows heartbeats: to be called more often than they come. */
  look(fleet: FleetSnapshot): void {
    for (const role of ["prefill", "decode"] as const) this.#steps[role].look(ranksOf(fleet, this.#model, role));
  }

  plan(view: ModelView): CapacityView {
    const { nowMs, demand, traffic, fleet, wanted, coldStartMs } = view;
    if (traffic !== null) {
      this.#meter ??= new TrafficMeter(nowMs, new Map());
      this.#meter.look(nowMs, traffic);
    }
    const of = (role: Role) => {
      const ranks = ranksOf(fleet, this.#model, role).filter(isServing);
      return { ranks, steps: this.#steps[role], ranksPerWorker: ranks[0]?.ranks ?? 1 };
    };
    const { ttftGoalMs, tpotGoalMs, prefill, decode } = this.#rules;
    const signals = capacitySignals({
      ...{ nowMs, demand, tpotGoalMs, coldStartMs, prefill: of("prefill"), decode: of("decode") },
      traffic: traffic === null ? null : (this.#meter?.means(nowMs) ?? null),
    });
    const groups = { prefill, decode };
    // Others than the plan change the numbers too: the first request, idleness, somebody who waits.
    const before = {
      prefill: { ...this.#state.prefill, groups: wanted.prefill },
      decode: { ...this.#state.decode, groups: wanted.decode },
    };
    this.#state = planCapacity({ ...CAPACITY_CONSTANTS, ttftGoalMs, groups }, signals, before);
    return { state: this.#state, signals };
  }
}

function isServing({ state }: Rank): boolean {
  return state === "ready" || state === "draining";
}
