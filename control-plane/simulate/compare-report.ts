import { ATTAINED, bestOf, comparePolicies, type Outcome } from "./compare-policies.ts";
import type { FleetModel } from "./fleet-model.ts";
import { type Chart, drawCharts } from "./svg-chart.ts";
import { multiplied, readTrace } from "./trace-file.ts";

/** A trace that policies are compared on, as so many fleets' worth of traffic. */
export interface ComparedTrace {
  readonly name: string;
  readonly file: string;
  readonly copies: number;
  /** The planner's constants were chosen on it. */
  readonly chosenOn: boolean;
}

/** The public traces, by the names they are published under. */
export const COMPARED: readonly ComparedTrace[] = [
  { name: "Mooncake conversation", file: "mooncake_conversation_trace.jsonl", copies: 8, chosenOn: true },
  { name: "Azure code", file: "azure_code.csv", copies: 40, chosenOn: true },
  { name: "Mooncake synthetic", file: "mooncake_synthetic_trace.jsonl", copies: 8, chosenOn: false },
  { name: "Azure conversation", file: "azure_conv.csv", copies: 20, chosenOn: false },
];

export interface Comparison {
  readonly trace: ComparedTrace;
  readonly outcomes: readonly Outcome[];
}

/** Plays each trace of a folder under every policy and setting. */
export function compareAll(
  folder: string,
  model: FleetModel,
  onTrace: (done: Comparison) => void,
): readonly Comparison[] {
  return COMPARED.map((trace) => {
    const requests = multiplied(readTrace(`${folder}/${trace.file}`), trace.copies);
    const done = { trace, outcomes: comparePolicies(requests, model) };
    onTrace(done);
    return done;
  });
}

/** GPU-hours of the planner over those of the better baseline; null: one of them attains the goals with no setting. */
export function shareOfBest(outcomes: readonly Outcome[]): number | null {
  const mine = bestOf(outcomes, "planner");
  const others = [bestOf(outcomes, "knative"), bestOf(outcomes, "hpa")].filter((one) => one !== null);
  if (mine === null || others.length === 0) return null;
  return mine.figures.gpuSeconds / Math.min(...others.map(({ figures }) => figures.gpuSeconds));
}

/** One line of the table, in Markdown. */
export function rowOf({ trace, outcomes }: Comparison): string {
  const share = shareOfBest(outcomes);
  const cell = (policy: Outcome["policy"]): string => {
    const best = bestOf(outcomes, policy);
    if (best !== null) return `${hours(best)} (${percent(best)})${best.setting === "" ? "" : `: ${best.setting}`}`;
    const most = outcomes
      .filter((one) => one.policy === policy)
      .sort((a, b) => b.figures.attained - a.figures.attained)[0]!;
    return `misses: ${percent(most)} for ${hours(most)}`;
  };
  const name = `${trace.name}, ${trace.copies} copies${trace.chosenOn ? " *" : ""}`;
  return `| ${name} | ${cell("planner")} | ${cell("knative")} | ${cell("hpa")} | ${share === null ? "-" : `${Math.round(100 * share)} %`} |`;
}

/** The table, in Markdown. */
export function tableOf(comparisons: readonly Comparison[]): string {
  const count = (policy: Outcome["policy"]): number =>
    comparisons[0]?.outcomes.filter((one) => one.policy === policy).length ?? 0;
  return [
    `| trace | planner | Knative's concurrency, best of ${count("knative")} | pod autoscaler on queue length, fixed P:D, best of ${count("hpa")} | planner / better baseline |`,
    "|---|---|---|---|---|",
    ...comparisons.map(rowOf),
    "",
  ].join("\n");
}

/** A chart per trace: share within both goals over GPU-hours, a dot for each setting. */
export function drawComparison(comparisons: readonly Comparison[]): string {
  return drawCharts(comparisons.map(({ trace, outcomes }) => attainmentChart(trace.name, outcomes)));
}

export function attainmentChart(name: string, outcomes: readonly Outcome[]): Chart {
  const of = (policy: Outcome["policy"]) =>
    outcomes
      .filter((one) => one.policy === policy)
      .map(({ figures }) => [figures.gpuSeconds / 3600, 100 * figures.attained] as const);
  return {
    title: `${name}: requests within both goals, % (${ATTAINED * 100} % are asked for)`,
    ...{ x: "GPU-hours", y: "" },
    series: (["planner", "knative", "hpa"] as const).map((policy) => ({
      name: policy,
      as: "dots",
      points: of(policy),
    })),
  };
}

function hours({ figures }: Outcome): string {
  return (figures.gpuSeconds / 3600).toFixed(1);
}

function percent({ figures }: Outcome): string {
  return `${(100 * figures.attained).toFixed(1)} %`;
}
