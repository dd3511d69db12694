import type { RankId } from "#protocol/ids.ts";
import { NO_RANK_WORK, type Work } from "#protocol/worker.ts";
import type { Rank } from "../fleet/fleet.ts";

/** Share that a new observation has in the sums: they forget within some fifty heartbeats with work. */
const FORGET = 0.02;
/** A batch that varies less than this says nothing of what another one would take. */
const LEAST_SPREAD = 0.05;

interface Known {
  readonly epoch: number;
  readonly work: Work;
}

/**
 * How long steps of one model and role take, fitted to what heartbeats tell: milliseconds per row of a prompt, and of a
 * step that decodes as a line over the sequences in it.
 *
 * S1 a rank's first heartbeat of an epoch tells nothing but where its counters stand
 */
export class StepTimes {
  readonly #known = new Map<RankId, Known>();
  /** Forgetting sums: prompt rows and their time; weight, sequences, ms, sequences squared, sequences times ms. */
  #prompt = { rows: 0, ms: 0 };
  #line = { weight: 0, x: 0, y: 0, xx: 0, xy: 0 };
  /** Tokens that a sequence gains in a step. */
  #gain = { tokens: 0, streamSteps: 0 };

  look(ranks: readonly Rank[]): void {
    const left = new Set(this.#known.keys());
    for (const { rankId, epoch, load } of ranks) {
      left.delete(rankId);
      const before = this.#known.get(rankId);
      this.#known.set(rankId, { epoch, work: load.work });
      if (before !== undefined && before.epoch === epoch) this.#observe(since(before.work, load.work));
    }
    for (const rankId of left) this.#known.delete(rankId);
  }

  /** Milliseconds of one rank per prompt token; null: not measured. */
  get promptRowMs(): number | null {
    return this.#prompt.rows === 0 ? null : this.#prompt.ms / this.#prompt.rows;
  }

  /** Milliseconds between the tokens of a stream on a rank where `streams` decode; null: not measured. */
  tokenMs(streams: number): number | null {
    const { weight, x, y, xx, xy } = this.#line;
    if (weight === 0 || this.#gain.tokens === 0) return null;
    const [mean, ms] = [x / weight, y / weight];
    const spread = xx / weight - mean * mean;
    // Without different batches there is no slope to be seen.
    const slope = spread < LEAST_SPREAD ? 0 : Math.max(0, (xy / weight - mean * ms) / spread);
    const stepMs = Math.max(0, ms + (streams - mean) * slope);
    return stepMs / (this.#gain.tokens / this.#gain.streamSteps);
  }

  #observe({ steps, busyMs, promptRows, streamSteps, tokens }: Work): void {
    if (steps <= 0 || busyMs <= 0) return;
    const keep = 1 - FORGET;
    if (streamSteps === 0) {
      this.#prompt = { rows: keep * this.#prompt.rows + promptRows, ms: keep * this.#prompt.ms + busyMs };
    } else if (promptRows === 0) {
      const [n, ms] = [streamSteps / steps, busyMs / steps];
      const { weight, x, y, xx, xy } = this.#line;
      this.#line = {
        ...{ weight: keep * weight + 1, x: keep * x + n, y: keep * y + ms },
        ...{ xx: keep * xx + n * n, xy: keep * xy + n * ms },
      };
      const gain = this.#gain;
      this.#gain = { tokens: keep * gain.tokens + tokens, streamSteps: keep * gain.streamSteps + streamSteps };
    }
  }
}

/** What was done between two tellings; nothing where the counters began anew. */
function since(before: Work, now: Work): Work {
  if (now.steps < before.steps) return NO_RANK_WORK;
  return {
    steps: now.steps - before.steps,
    busyMs: now.busyMs - before.busyMs,
    promptRows: now.promptRows - before.promptRows,
    streamSteps: now.streamSteps - before.streamSteps,
    tokens: now.tokens - before.tokens,
  };
}
