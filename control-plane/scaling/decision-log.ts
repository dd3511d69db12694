import { z } from "zod";
import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import type { GatewayId, ModelName } from "#protocol/ids.ts";
import { type ExplainReport, ScalingDecision, ScalingPlan } from "#protocol/scaling.ts";
import { subjects } from "#protocol/subjects.ts";
import type { Clock } from "#service/clock.ts";

type Explained = Pick<ExplainReport["models"][number], "plan" | "decisions">;

interface Heard<T> {
  readonly atMs: number;
  readonly told: T;
}

/** Decisions kept per model. */
const KEPT = 20;
const Told = z.discriminatedUnion("kind", [ScalingPlan, ScalingDecision]);

/**
 * Owns what this control plane knows of why there are as many workers as there are: it tells its own decisions and plans on
 * the bus, and hears those of whoever scales.
 *
 *   created -> started -> stopped
 */
export class DecisionLog {
  readonly #bus: Bus;
  readonly #clock: Clock;
  readonly #gatewayId: GatewayId;
  readonly #plans = new Map<ModelName, Heard<ScalingPlan>>();
  /** The latest first. */
  readonly #decisions = new Map<ModelName, readonly Heard<ScalingDecision>[]>();
  #subscription: Subscription | null = null;

  constructor(parts: { readonly bus: Bus; readonly clock: Clock; readonly gatewayId: GatewayId }) {
    this.#bus = parts.bus;
    this.#clock = parts.clock;
    this.#gatewayId = parts.gatewayId;
  }

  start(): void {
    this.#subscription = this.#bus.subscribe(subjects.allScaling(), Told, (told) => {
      if (told.gatewayId !== this.#gatewayId) this.#note(told);
    });
  }

  stop(): void {
    this.#subscription?.unsubscribe();
    this.#subscription = null;
  }

  tell(own: Omit<ScalingPlan, "gatewayId"> | Omit<ScalingDecision, "gatewayId">): void {
    const told = { ...own, gatewayId: this.#gatewayId };
    this.#note(told);
    this.#bus.publish(subjects.gatewayScaling(this.#gatewayId), Told, told);
  }

  explain(model: ModelName): Explained {
    const nowMs = this.#clock.monotonic();
    const plan = this.#plans.get(model);
    return {
      plan: plan === undefined ? null : { agoMs: nowMs - plan.atMs, plan: plan.told },
      decisions: (this.#decisions.get(model) ?? []).map(({ atMs, told }) => ({ agoMs: nowMs - atMs, decision: told })),
    };
  }

  #note(told: ScalingPlan | ScalingDecision): void {
    const atMs = this.#clock.monotonic();
    if (told.kind === "scaling-plan") this.#plans.set(told.model, { atMs, told });
    else {
      const before = this.#decisions.get(told.model) ?? [];
      this.#decisions.set(told.model, [{ atMs, told }, ...before].slice(0, KEPT));
    }
  }
}
