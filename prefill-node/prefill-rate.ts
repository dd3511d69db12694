import { NO_RANK_WORK, type Work } from "#protocol/worker.ts";

/** Share of a new observation in the average. */
const WEIGHT = 0.3;

/**
 * Measures how fast this rank computes prompts, in tokens per second of engine time; 0 while unknown.
 *
 * A step with few rows costs nearly as much as a full one, so it says little about full ones: it may raise the rate at
 * once, but lowers it only in proportion to its share of the budget.
 */
export class PrefillRate {
  tokensPerSecond = 0;
  #work = NO_RANK_WORK;
  readonly #budget: number;

  constructor(budget: number) {
    this.#budget = budget;
  }

  /** Everything that was observed. */
  get work(): Work {
    return this.#work;
  }

  observe(rows: number, computeMs: number): void {
    if (rows === 0 || computeMs <= 0) return;
    const { steps, busyMs, promptRows } = this.#work;
    this.#work = { ...this.#work, steps: steps + 1, busyMs: busyMs + computeMs, promptRows: promptRows + rows };
    const seen = (rows / computeMs) * 1000;
    const falling = seen < this.tokensPerSecond;
    const weight = this.tokensPerSecond === 0 ? 1 : falling ? WEIGHT * Math.min(1, rows / this.#budget) : WEIGHT;
    this.tokensPerSecond += (seen - this.tokensPerSecond) * weight;
  }
}
