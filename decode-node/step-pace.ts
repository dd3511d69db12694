/** Share of a new observation in the averages. */
const WEIGHT = 0.1;
/** The planner may be away for this long (a garbage collection, a busy core) without a stream sitting out. */
export const PLANNER_AWAY_MS = 25;
/** Bounds of the steps planned at once. */
export const FEWEST_STEPS = 2;
const MOST_STEPS = 256;
/** A prompt computed beside running streams delays a step by its own length at most, or by this much. */
const LEAST_DELAY_MS = 8;
/** Rows of a prompt that a step has at least: even a slow prompt gets on. */
const LEAST_CHUNK = 16;

/**
 * How long the steps of this rank take: measured, and what follows from it.
 *
 * Steps that only decode give a line, milliseconds over sequences, out of averages that forget; a step with rows of
 * prompts costs more than the line says, and the rest is theirs.
 */
export class StepPace {
  /** Averages over steps that only decode: sequences, ms, sequences squared, sequences times ms. */
  #moments: [number, number, number, number] | null = null;
  #promptRowMs = 0;

  /** A step with rows of `sequences` that decode and `promptRows` besides took `ms`. */
  observe(sequences: number, promptRows: number, ms: number): void {
    if (promptRows > 0) {
      const rowMs = Math.max(0, ms - this.stepMs(sequences)) / promptRows;
      this.#promptRowMs += (rowMs - this.#promptRowMs) * (this.#promptRowMs === 0 ? 1 : WEIGHT);
    } else if (sequences > 0) {
      const seen: [number, number, number, number] = [sequences, ms, sequences * sequences, sequences * ms];
      const moments = this.#moments;
      if (moments === null) this.#moments = seen;
      else for (const [i, value] of seen.entries()) moments[i]! += (value - moments[i]!) * WEIGHT;
    }
  }

  /** Expected milliseconds of a step in which `sequences` decode; 0: not measured yet. */
  stepMs(sequences: number): number {
    if (this.#moments === null || sequences === 0) return 0;
    const [mean, ms, squares, products] = this.#moments;
    const spread = squares - mean * mean;
    // Without different batches there is no slope to be seen.
    const slope = spread < 1e-3 ? 0 : Math.max(0, (products - mean * ms) / spread);
    return Math.max(0, ms + (sequences - mean) * slope);
  }

  /** Steps of one planning round: so many that their results come before the planner is missed. */
  stepsPerRound(sequences: number): number {
    const ms = this.stepMs(sequences);
    if (ms === 0) return FEWEST_STEPS;
    return Math.min(MOST_STEPS, Math.max(FEWEST_STEPS, Math.ceil(PLANNER_AWAY_MS / ms)));
  }

  /** Most rows of prompts in a step beside `sequences` that decode, within `budget`. */
  chunkRows(sequences: number, budget: number): number {
    if (sequences === 0 || this.#promptRowMs === 0) return budget;
    const rows = Math.floor(Math.max(LEAST_DELAY_MS, this.stepMs(sequences)) / this.#promptRowMs);
    return Math.min(budget, Math.max(LEAST_CHUNK, rows));
  }
}
