import { type ChaosOptions, runScenario } from "./chaos.ts";
import { scenarioOf } from "./scenario.ts";
import { shrink } from "./shrink.ts";

/** What many seeds came to. */
export interface ChaosReport {
  readonly seeds: number;
  readonly requests: number;
  readonly events: number;
  readonly virtualMs: number;
  readonly ends: Readonly<Record<string, number>>;
  /** The first seed in which an invariant broke. */
  readonly failure: ChaosFailure | null;
}

export interface ChaosFailure {
  readonly seed: number;
  readonly requests: number;
  readonly sentence: string;
  /** What is left of the scenario, and what happened in it. */
  readonly faults: readonly string[];
  readonly shrunkRequests: number;
  readonly history: readonly string[];
}

export interface ChaosPlan {
  readonly firstSeed: number;
  readonly seeds: number;
  /** Of each seed. */
  readonly requests: number;
  /** Looked at between seeds: false ends the run early. */
  readonly goesOn?: () => boolean;
  readonly onSeed?: (seed: number) => void;
}

/** Runs seed after seed, until an invariant breaks. */
export async function runChaos(plan: ChaosPlan, options: ChaosOptions): Promise<ChaosReport> {
  const total = { seeds: 0, requests: 0, events: 0, virtualMs: 0 };
  const ends: Record<string, number> = {};
  for (let seed = plan.firstSeed; seed < plan.firstSeed + plan.seeds; seed++) {
    if (plan.goesOn?.() === false) break;
    const scenario = scenarioOf(seed, { requests: plan.requests, calm: options.calm === true });
    const result = await runScenario(scenario, { ...options, record: false });
    total.seeds++;
    total.requests += result.requests;
    total.events += result.events;
    total.virtualMs += result.virtualMs;
    for (const [end, count] of Object.entries(result.ends)) ends[end] = (ends[end] ?? 0) + count;
    plan.onSeed?.(seed);
    if (result.broken === null) continue;
    const shrunk = await shrink(scenario, result.broken.invariant, options);
    const failure: ChaosFailure = {
      ...{ seed, requests: plan.requests, sentence: result.broken.message },
      faults: shrunk.scenario.faults.map((fault) => JSON.stringify(fault)),
      shrunkRequests: shrunk.scenario.requests.length,
      history: [...shrunk.result.history, `broken: ${shrunk.result.broken?.message ?? "nothing, this time"}`],
    };
    return { ...total, ends, failure };
  }
  return { ...total, ends, failure: null };
}

/** Lines of the history that are shown: the last ones hold the cause. */
const SHOWN_LINES = 200;

/** The report in words. */
export function describeChaos({ seeds, requests, events, virtualMs, ends, failure }: ChaosReport): string {
  const lines = [
    `${seeds} seeds, ${requests} requests, ${events} events, ${(virtualMs / 3_600_000).toFixed(1)} hours of virtual time`,
    `ends: ${Object.entries(ends)
      .sort(([, a], [, b]) => b - a)
      .map(([end, count]) => `${end} ${count}`)
      .join(", ")}`,
  ];
  if (failure === null) return `${[...lines, "no invariant broke"].join("\n")}\n`;
  const { history } = failure;
  const left = history.length - SHOWN_LINES;
  return `${[
    ...lines,
    `BROKEN with seed ${failure.seed} and ${failure.requests} requests: ${failure.sentence}`,
    `shrunk to ${failure.shrunkRequests} requests and ${failure.faults.length} faults:`,
    ...failure.faults.map((fault) => `  ${fault}`),
    "what happened (virtual milliseconds):",
    ...(left > 0 ? [`  ... ${left} lines before`] : []),
    ...history.slice(-SHOWN_LINES),
    `again: margay simulate --chaos --seed ${failure.seed} --seeds 1 --requests ${failure.requests}`,
  ].join("\n")}\n`;
}
