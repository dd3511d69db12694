import type { FleetModel } from "./fleet-model.ts";
import type { FleetRun } from "./fleet-run.ts";

/** What a run of a fleet came to. */
export interface FleetFigures {
  readonly requests: number;
  /** Shares of all requests: within both goals, the first token's, the others'. */
  readonly attained: number;
  readonly ttftAttained: number;
  readonly tpotAttained: number;
  /** Requests within both goals per second of the trace. */
  readonly goodput: number;
  readonly ttftMs: Percentiles;
  readonly tpotMs: Percentiles;
  readonly gpuSeconds: number;
  readonly dollars: number;
  readonly outputTokens: number;
}

export interface Percentiles {
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
}

export function figuresOf(run: FleetRun, requests: number, lastArrivalMs: number, model: FleetModel): FleetFigures {
  const { ttftGoalMs, tpotGoalMs, gpu } = model.spec;
  let [both, first, rest, outputTokens] = [0, 0, 0, 0];
  for (const { ttftMs, tpotMs, outputTokens: tokens } of run.served) {
    const [soon, fast] = [ttftMs <= ttftGoalMs, tpotMs <= tpotGoalMs];
    if (soon) first++;
    if (fast) rest++;
    if (soon && fast) both++;
    outputTokens += tokens;
  }
  return {
    requests,
    attained: both / requests,
    ttftAttained: first / requests,
    tpotAttained: rest / requests,
    goodput: both / Math.max(1, lastArrivalMs / 1000),
    ttftMs: percentiles(run.served.map(({ ttftMs }) => ttftMs)),
    tpotMs: percentiles(run.served.filter(({ tpotMs }) => tpotMs > 0).map(({ tpotMs }) => tpotMs)),
    gpuSeconds: run.gpuSeconds,
    dollars: (run.gpuSeconds / 3600) * gpu.dollarsPerHour,
    outputTokens,
  };
}

function percentiles(values: readonly number[]): Percentiles {
  const sorted = Float64Array.from(values).sort();
  const at = (share: number): number => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99) };
}
