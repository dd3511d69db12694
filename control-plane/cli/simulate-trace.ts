import { statSync, writeFileSync } from "node:fs";
import { GPUS, MODELS } from "../planner/moe-shape.ts";
import { MEASURED_EFFICIENCY } from "../planner/step-time.ts";
import { ATTAINED, bestOf, comparePolicies, figuresFor, runPlanner } from "../simulate/compare-policies.ts";
import { attainmentChart, compareAll, drawComparison, rowOf, tableOf } from "../simulate/compare-report.ts";
import { FleetModel } from "../simulate/fleet-model.ts";
import type { FleetFigures } from "../simulate/fleet-report.ts";
import { drawCharts } from "../simulate/svg-chart.ts";
import { multiplied, readTrace } from "../simulate/trace-file.ts";

export interface TraceArguments {
  readonly trace: string;
  readonly model: string;
  readonly gpu: string;
  /** GPUs there are for each role. */
  readonly gpus: number;
  readonly groupGpus: number;
  readonly copies: number;
  readonly ttftGoalMs: number;
  readonly tpotGoalMs: number;
  readonly coldStartMs: number;
  readonly compare: boolean;
  /** Where the drawing goes. */
  readonly file: string;
}

/** Plays a trace on a modelled fleet under the planner, prints what came of it and draws it. */
export function simulateTrace(asked: TraceArguments): number {
  const model = new FleetModel({
    ...{ model: named(MODELS, asked.model, "model"), gpu: named(GPUS, asked.gpu, "GPU") },
    ...{ efficiency: MEASURED_EFFICIENCY, prefillGpus: asked.groupGpus, decodeGpus: asked.groupGpus },
    ...{ ttftGoalMs: asked.ttftGoalMs, tpotGoalMs: asked.tpotGoalMs, coldStartMs: asked.coldStartMs },
    mostGroups: Math.max(1, Math.floor(asked.gpus / asked.groupGpus)),
  });
  if (asked.compare && statSync(asked.trace).isDirectory()) return compareFolder(asked, model);
  const trace = multiplied(readTrace(asked.trace), asked.copies);
  const { decode, prefill } = MEASURED_EFFICIENCY;
  process.stdout.write(
    `${trace.length} requests on ${asked.model}, groups of ${asked.groupGpus} ${asked.gpu}, at most ${model.spec.mostGroups} of a role; ` +
      `decoding at ${decode} of theory, prefill at ${prefill} of the peak\n`,
  );
  if (asked.compare) return compare(asked, trace, model);
  const run = runPlanner(trace, model);
  process.stdout.write(describe(figuresFor(run, trace, model)));
  const minutes = (atMs: number): number => atMs / 60_000;
  writeFileSync(
    asked.file,
    drawCharts([
      {
        ...{ title: "groups", x: "minutes", y: "" },
        series: [
          { name: "prefill", as: "steps", points: run.history.map((one) => [minutes(one.atMs), one.prefill]) },
          { name: "decode", as: "steps", points: run.history.map((one) => [minutes(one.atMs), one.decode]) },
        ],
      },
      {
        ...{ title: "requests that wait", x: "minutes", y: "" },
        series: [{ name: "waiting", as: "steps", points: run.history.map((one) => [minutes(one.atMs), one.waiting]) }],
      },
    ]),
  );
  process.stdout.write(`drawn in ${asked.file}\n`);
  return 0;
}

/** The public traces in a folder, one after the other; the table beside the drawing. */
function compareFolder({ trace, file }: TraceArguments, model: FleetModel): number {
  const done = compareAll(trace, model, (one) => process.stdout.write(`${rowOf(one)}\n`));
  writeFileSync(file, drawComparison(done));
  const table = file.replace(/(\.svg)?$/, ".md");
  writeFileSync(table, tableOf(done));
  process.stdout.write(`written: ${file}, ${table}\n`);
  return 0;
}

function compare(asked: TraceArguments, trace: ReturnType<typeof multiplied>, model: FleetModel): number {
  const outcomes = comparePolicies(trace, model);
  const mine = outcomes[0]!.figures;
  for (const policy of ["planner", "knative", "hpa"] as const) {
    const best = bestOf(outcomes, policy);
    const count = outcomes.filter((one) => one.policy === policy).length;
    const most = Math.max(...outcomes.filter((one) => one.policy === policy).map(({ figures }) => figures.attained));
    process.stdout.write(
      best === null
        ? `${policy.padEnd(8)} none of ${count} settings attains ${ATTAINED * 100} %; the most is ${(most * 100).toFixed(1)} %\n`
        : `${policy.padEnd(8)} ${hours(best.figures)} GPU-hours, ${(best.figures.attained * 100).toFixed(1)} % attained, ` +
            `the planner needs ${((100 * mine.gpuSeconds) / best.figures.gpuSeconds).toFixed(0)} % of it` +
            `${best.setting === "" ? "" : ` (best of ${count}: ${best.setting})`}\n`,
    );
  }
  writeFileSync(asked.file, drawCharts([attainmentChart(asked.trace.split("/").at(-1)!, outcomes)]));
  process.stdout.write(`drawn in ${asked.file}\n`);
  return 0;
}

function describe(figures: FleetFigures): string {
  const { attained, ttftAttained, tpotAttained, goodput, ttftMs, tpotMs, gpuSeconds, dollars, outputTokens } = figures;
  const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
  return [
    `goodput ${goodput.toFixed(2)} requests/s; within both goals ${percent(attained)} (first token ${percent(ttftAttained)}, others ${percent(tpotAttained)})`,
    `TTFT ms   p50 ${ttftMs.p50.toFixed(0)}  p90 ${ttftMs.p90.toFixed(0)}  p99 ${ttftMs.p99.toFixed(0)}`,
    `TPOT ms   p50 ${tpotMs.p50.toFixed(1)}  p90 ${tpotMs.p90.toFixed(1)}  p99 ${tpotMs.p99.toFixed(1)}`,
    `${gpuSeconds.toFixed(0)} GPU-seconds, ${dollars.toFixed(2)} dollars, ${((dollars / outputTokens) * 1e6).toFixed(2)} per million output tokens`,
    "",
  ].join("\n");
}

function hours({ gpuSeconds }: FleetFigures): string {
  return (gpuSeconds / 3600).toFixed(1);
}

export function named<T extends { readonly name: string }>(list: readonly T[], name: string, what: string): T {
  const found = list.find((one) => one.name === name);
  if (found !== undefined) return found;
  throw new Error(`${what} ${name} is not known; known are ${list.map((one) => one.name).join(", ")}`);
}
