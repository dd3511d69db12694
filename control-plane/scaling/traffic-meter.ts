import { NO_TRAFFIC, type Traffic } from "#protocol/demand.ts";

/** What is known of a model's requests. Means are per request, and stay when nothing comes any more. */
export interface TrafficMeans {
  /** Requests per second, lately and over a longer time. */
  readonly short: number;
  readonly long: number;
  readonly promptTokens: number;
  /** Squared coefficient of variation of prompt lengths. */
  readonly promptVariation: number;
  /** Share of prompt tokens that nobody had to compute; 0 while no request has ended. */
  readonly cachedShare: number;
  /** null: no request has ended yet. */
  readonly outputTokens: number | null;
  /** Share of first tokens that were late; null: none came. */
  readonly late: number | null;
}

interface Sample {
  readonly atMs: number;
  /** What came since the one before. */
  readonly came: Traffic;
}

export const SHORT_MS = 15_000;
export const LONG_MS = 120_000;
/** Whether goals are kept is judged over so long. */
export const LATE_MS = 900_000;

/**
 * Owns what came at all control planes lately, out of their counters.
 *
 * M1 a control plane that is heard for the first time, or whose counters fell, adds nothing but what it counts from there on
 * M2 means are those of the latest requests there were, however long ago
 */
export class TrafficMeter {
  readonly #beganMs: number;
  #last: ReadonlyMap<string, Traffic>;
  #samples: readonly Sample[] = [];
  #means: Omit<TrafficMeans, "short" | "long" | "late"> | null = null;

  /** `counters` are those of now, by control plane. */
  constructor(nowMs: number, counters: ReadonlyMap<string, Traffic>) {
    this.#beganMs = nowMs;
    this.#last = counters;
  }

  look(nowMs: number, counters: ReadonlyMap<string, Traffic>): void {
    let came = NO_TRAFFIC;
    for (const [who, now] of counters) {
      const before = this.#last.get(who);
      if (before !== undefined && before.arrived <= now.arrived) came = combined(came, now, before);
    }
    this.#last = counters;
    this.#samples = [...this.#samples.filter(({ atMs }) => atMs > nowMs - LATE_MS), { atMs: nowMs, came }];
    const long = sumOf(this.#samples.filter(({ atMs }) => atMs > nowMs - LONG_MS));
    if (long.arrived > 0) this.#means = meansOf(long, this.#means?.outputTokens ?? null);
  }

  /** null: nothing came yet. */
  means(nowMs: number): TrafficMeans | null {
    if (this.#means === null) return null;
    const rate = (spanMs: number): number => {
      const { arrived } = sumOf(this.#samples.filter(({ atMs }) => atMs > nowMs - spanMs));
      return (1000 * arrived) / Math.max(1_000, Math.min(spanMs, nowMs - this.#beganMs));
    };
    const { firstTokens, lateTokens } = sumOf(this.#samples);
    const late = firstTokens === 0 ? null : lateTokens / firstTokens;
    return { ...this.#means, late, short: rate(SHORT_MS), long: rate(LONG_MS) };
  }
}

function meansOf(long: Traffic, outputTokens: number | null): Omit<TrafficMeans, "short" | "long" | "late"> {
  const promptTokens = long.promptTokens / long.arrived;
  const square = long.promptSquares / long.arrived;
  return {
    promptTokens,
    promptVariation: promptTokens === 0 ? 0 : Math.max(0, square / promptTokens ** 2 - 1),
    cachedShare: long.endedPromptTokens === 0 ? 0 : long.cachedTokens / long.endedPromptTokens,
    outputTokens: long.ended === 0 ? outputTokens : long.outputTokens / long.ended,
  };
}

function sumOf(samples: readonly Sample[]): Traffic {
  return samples.reduce((sum, { came }) => combined(sum, came, NO_TRAFFIC), NO_TRAFFIC);
}

/** `a` and what `now` has beyond `before`. */
function combined(a: Traffic, now: Traffic, before: Traffic): Traffic {
  return {
    arrived: a.arrived + now.arrived - before.arrived,
    promptTokens: a.promptTokens + now.promptTokens - before.promptTokens,
    firstTokens: a.firstTokens + now.firstTokens - before.firstTokens,
    lateTokens: a.lateTokens + now.lateTokens - before.lateTokens,
    promptSquares: a.promptSquares + now.promptSquares - before.promptSquares,
    ended: a.ended + now.ended - before.ended,
    endedPromptTokens: a.endedPromptTokens + now.endedPromptTokens - before.endedPromptTokens,
    cachedTokens: a.cachedTokens + now.cachedTokens - before.cachedTokens,
    outputTokens: a.outputTokens + now.outputTokens - before.outputTokens,
  };
}
