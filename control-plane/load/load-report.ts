import { drawCharts } from "../simulate/svg-chart.ts";
import type { LoadOutcome } from "./load-run.ts";
import type { Observation } from "./stream-one.ts";

/** What an answer should keep to. Milliseconds. */
export interface LoadGoals {
  readonly ttftMs: number;
  readonly tpotMs: number;
}

export interface Percentiles {
  readonly mean: number;
  readonly p50: number;
  readonly p90: number;
  readonly p95: number;
  readonly p99: number;
  readonly max: number;
}

/** Figures of a run, in milliseconds and per second; null: nothing was observed. */
export interface LoadReport {
  readonly requests: number;
  readonly failed: number;
  /** Failures by their sentence. */
  readonly failures: Readonly<Record<string, number>>;
  readonly seconds: number;
  readonly latestMs: number;
  readonly requestsPerSecond: number;
  readonly promptTokensPerSecond: number;
  readonly tokensPerSecond: number;
  /** Requests a second that met both goals, and their share of all. */
  readonly goodput: number;
  readonly goodShare: number;
  readonly goals: LoadGoals;
  readonly ttftMs: Percentiles | null;
  /** After the first token, per further token of each request. */
  readonly tpotMs: Percentiles | null;
  /** Between pieces of text, over all requests. */
  readonly itlMs: Percentiles | null;
  readonly totalMs: Percentiles | null;
}

export function loadReport({ observations, seconds, latestMs }: LoadOutcome, goals: LoadGoals): LoadReport {
  const whole = observations.filter(({ error }) => error === null);
  const failures: Record<string, number> = {};
  for (const { error } of observations) if (error !== null) failures[error] = (failures[error] ?? 0) + 1;
  const sum = (count: (one: Observation) => number): number => whole.reduce((total, one) => total + count(one), 0);
  const good = whole.filter((one) => isGood(one, goals)).length;
  const perSecond = (count: number): number => (seconds > 0 ? count / seconds : 0);
  return {
    requests: observations.length,
    failed: observations.length - whole.length,
    ...{ failures, seconds, latestMs, goals },
    requestsPerSecond: perSecond(whole.length),
    promptTokensPerSecond: perSecond(sum(({ promptTokens }) => promptTokens)),
    tokensPerSecond: perSecond(sum(({ tokens }) => tokens)),
    goodput: perSecond(good),
    goodShare: observations.length === 0 ? 0 : good / observations.length,
    ttftMs: percentiles(whole.flatMap(({ ttftMs }) => (ttftMs === null ? [] : [ttftMs]))),
    tpotMs: percentiles(whole.flatMap((one) => tpotOf(one) ?? [])),
    itlMs: percentiles(whole.flatMap(({ gapsMs }) => gapsMs)),
    totalMs: percentiles(whole.map(({ totalMs }) => totalMs)),
  };
}

function isGood(one: Observation, { ttftMs, tpotMs }: LoadGoals): boolean {
  return one.ttftMs !== null && one.ttftMs <= ttftMs && (tpotOf(one) ?? 0) <= tpotMs;
}

/** null: there was no further token. */
function tpotOf({ gapsMs, tokens }: Observation): number | null {
  if (tokens < 2 || gapsMs.length === 0) return null;
  return gapsMs.reduce((sum, gap) => sum + gap, 0) / (tokens - 1);
}

/** By the nearest rank: each is a value that was observed. */
export function percentiles(values: readonly number[]): Percentiles | null {
  if (values.length === 0) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number): number => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)]!;
  const mean = sorted.reduce((sum, value) => sum + value, 0) / sorted.length;
  return { mean, p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99), max: at(1) };
}

/** The report in words. */
export function reportText(report: LoadReport): string {
  const row = (name: string, values: Percentiles | null): string =>
    values === null
      ? `${name.padEnd(20)} nothing observed`
      : `${name.padEnd(20)}${[values.mean, values.p50, values.p90, values.p95, values.p99, values.max].map((value) => value.toFixed(1).padStart(10)).join("")}`;
  const { goals } = report;
  return [
    `${report.requests} requests in ${report.seconds.toFixed(1)} s, ${report.failed} failed`,
    ...Object.entries(report.failures).map(([sentence, count]) => `  ${count} x ${sentence}`),
    ...(report.latestMs > 100 ? [`  sent up to ${report.latestMs.toFixed(0)} ms late: more --clients`] : []),
    `${report.requestsPerSecond.toFixed(2)} requests/s, ${report.promptTokensPerSecond.toFixed(0)} prompt tokens/s, ${report.tokensPerSecond.toFixed(0)} tokens/s`,
    `goodput ${report.goodput.toFixed(2)} requests/s, ${(100 * report.goodShare).toFixed(1)} % (first token within ${goals.ttftMs} ms, further ones within ${goals.tpotMs} ms)`,
    `${"milliseconds".padEnd(20)}${["mean", "p50", "p90", "p95", "p99", "max"].map((name) => name.padStart(10)).join("")}`,
    row("first token (TTFT)", report.ttftMs),
    row("per token (TPOT)", report.tpotMs),
    row("between texts (ITL)", report.itlMs),
    row("whole request", report.totalMs),
    "",
  ].join("\n");
}

/** How many requests had at most so many milliseconds, and when first tokens came late. */
export function reportChart({ observations }: LoadOutcome): string {
  const whole = observations.filter(({ error, ttftMs }) => error === null && ttftMs !== null);
  const distribution = (values: readonly number[]): readonly (readonly [number, number])[] =>
    [...values].sort((a, b) => a - b).map((value, i) => [value, (100 * (i + 1)) / values.length] as const);
  return drawCharts([
    {
      ...{ title: "Time to first token", x: "s since the start", y: "ms" },
      series: [{ name: "requests", as: "dots", points: whole.map((one) => [one.atMs / 1000, one.ttftMs!] as const) }],
    },
    {
      ...{ title: "Requests within", x: "ms", y: "%" },
      series: [
        { name: "first token", as: "steps", points: distribution(whole.map((one) => one.ttftMs!)) },
        { name: "whole request", as: "steps", points: distribution(whole.map((one) => one.totalMs)) },
      ],
    },
    {
      ...{ title: "Requests within, per further token", x: "ms", y: "%" },
      series: [{ name: "TPOT", as: "steps", points: distribution(whole.flatMap((one) => tpotOf(one) ?? [])) }],
    },
  ]);
}
