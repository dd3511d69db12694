import { CAPACITY_CONSTANTS, type CapacityRules } from "../scaling/capacity-plan.ts";
import { LONG_MS, SHORT_MS } from "../scaling/traffic-meter.ts";
import type { FleetModel } from "./fleet-model.ts";
import { type FleetFigures, figuresOf } from "./fleet-report.ts";
import { type FleetRun, type Groups, type Policy, runFleet } from "./fleet-run.ts";
import { hpaPolicy, knativePolicy, plannedPolicy } from "./policies.ts";
import { type TraceRequest, withLeadIn } from "./trace-file.ts";

/** A policy with one setting, and what it came to. */
export interface Outcome {
  readonly policy: "planner" | "knative" | "hpa";
  readonly setting: string;
  readonly figures: FleetFigures;
}

/** The share of requests that has to be within both goals. */
export const ATTAINED = 0.95;
const FIRST: Groups = { prefill: 2, decode: 2 };
/** Policies are compared from here on, over a fleet that was ample when the lead-in began. */
const LEAD_IN_MS = 300_000;
const AMPLE: Groups = { prefill: 16, decode: 2 };
const WINDOWS = { shortMs: SHORT_MS, longMs: LONG_MS } as const;

/** The product's rules for a fleet that may not go to zero. */
export function plannerRules({ spec }: FleetModel): CapacityRules {
  const groups = { min: 1, max: spec.mostGroups };
  return { ...CAPACITY_CONSTANTS, ttftGoalMs: spec.ttftGoalMs, groups: { prefill: groups, decode: groups } };
}

export function runPlanner(trace: readonly TraceRequest[], model: FleetModel): FleetRun {
  return runFleet(trace, model, plannedPolicy(plannerRules(model), WINDOWS), FIRST);
}

export function figuresFor(run: FleetRun, trace: readonly TraceRequest[], model: FleetModel): FleetFigures {
  return figuresOf(run, trace.length, trace.at(-1)?.atMs ?? 0, model);
}

/** The planner once, and each baseline over its settings. */
export function comparePolicies(trace: readonly TraceRequest[], model: FleetModel): readonly Outcome[] {
  const played = withLeadIn(trace, LEAD_IN_MS);
  const outcomes: Outcome[] = [];
  const add = (policy: Outcome["policy"], setting: string, rule: Policy): void => {
    const run = runFleet(played, model, rule, AMPLE, LEAD_IN_MS);
    outcomes.push({ policy, setting, figures: figuresFor(run, trace, model) });
  };
  add("planner", "", plannedPolicy(plannerRules(model), WINDOWS));
  const context = trace.reduce((sum, one) => sum + one.promptTokens + one.outputTokens / 2, 0) / trace.length;
  const streams = model.mostStreams(context);
  for (const prefill of [0.3, 0.5, 0.7, 1, 2, 4, 8]) {
    for (const decode of [0.4 * streams, 0.7 * streams, streams]) {
      for (const delayMs of [0, 300_000, 900_000]) {
        const setting = `${prefill} prompts, ${Math.round(decode)} streams, delay ${delayMs / 1000} s`;
        add("knative", setting, knativePolicy({ prefill, decode, delayMs }));
      }
    }
  }
  for (const target of [0.005, 0.02, 0.1, 0.3, 1, 3]) {
    for (const decodePerPrefill of [0.03125, 0.0625, 0.125, 0.25]) {
      for (const windowMs of [60_000, 300_000, 900_000]) {
        const setting = `${target} waiting, D/P ${decodePerPrefill}, window ${windowMs / 1000} s`;
        add("hpa", setting, hpaPolicy({ target, decodePerPrefill, windowMs }));
      }
    }
  }
  return outcomes;
}

/** The cheapest setting of a policy that attains the goals; null: none does. */
export function bestOf(outcomes: readonly Outcome[], policy: Outcome["policy"]): Outcome | null {
  const good = outcomes.filter((one) => one.policy === policy && one.figures.attained >= ATTAINED);
  return good.reduce<Outcome | null>(
    (best, one) => (best === null || one.figures.gpuSeconds < best.figures.gpuSeconds ? one : best),
    null,
  );
}
