import type { NativeTrace } from "../../native/binding/native.ts";
import { EngineAlone } from "./engine-alone.ts";
import type { BenchOptions } from "./options.ts";
import { Prompts } from "./prompts.ts";
import { machineLine, print, spread, summary } from "./report.ts";

const STREAMS = 16;
const PROMPT_TOKENS = 100;
const ROUNDS = 5;
/** Promised: what a step may cost beside its kernels. */
const OUTSIDE_KERNELS_US = 40;

interface Interval {
  readonly from: number;
  readonly to: number;
}

/** What a step of nano at batch 16 costs outside its kernels, and whether the engine ever waits for the planner. */
export async function benchStepOverhead({ backend, quick, promises }: BenchOptions): Promise<void> {
  await using alone = await EngineAlone.open("decode", { backend, threads: 0, packedFolder: "" });
  const prompts = new Prompts(1);
  const outside: number[] = [];
  const between: number[] = [];
  const lengths: number[] = [];
  for (let round = 0; round < (quick ? 2 : ROUNDS); round++) {
    const batch = await Promise.all(Array.from({ length: STREAMS }, () => prompts.next(PROMPT_TOKENS)));
    alone.engine.startTrace();
    await alone.generate(
      batch.map(({ tokens }) => tokens),
      200,
    );
    const { steps, kernels } = intervalsOf(alone.engine.takeTrace());
    // The middle half: all streams decode, none has ended.
    const middle = steps.slice(Math.floor(steps.length / 4), Math.floor((3 * steps.length) / 4));
    for (const [i, step] of middle.entries()) {
      const own = kernels.filter(({ from, to }) => from >= step.from && to <= step.to);
      outside.push(1000 * (step.to - step.from - covered(own)));
      lengths.push(1000 * (step.to - step.from));
      if (i > 0) between.push(1000 * (step.from - middle[i - 1]!.to));
    }
  }
  const row = (name: string, samples: readonly number[]) => {
    const all = summary(samples);
    return [name, spread(all, 1), all.p95.toFixed(1)];
  };
  print({
    title: "A step of nano at batch 16, us",
    machine: machineLine(alone.engine.info),
    workload: `${STREAMS} streams decode with one draft each; spans of the engine thread (margay trace)`,
    rows: [
      ["", "p50 (least..most)", "p95"],
      row("step", lengths),
      row("outside its kernels", outside),
      row("between two steps", between),
    ],
    notMeasured: "other threads, which run meanwhile",
  });
  const p50 = (samples: readonly number[]) => summary(samples).p50;
  promises.check(
    `at most ${OUTSIDE_KERNELS_US} us of a step are outside its kernels`,
    p50(outside) <= OUTSIDE_KERNELS_US,
  );
  promises.check("the planner hides behind the running step", p50(between) <= OUTSIDE_KERNELS_US);
}

/** Steps, and what is computed within them; times in ms since the first of all. */
function intervalsOf({ names, spans }: NativeTrace): { readonly steps: Interval[]; readonly kernels: Interval[] } {
  const steps: Interval[] = [];
  const kernels: Interval[] = [];
  const startMs = spans[2] ?? 0;
  for (let at = 0; at < spans.length; at += 4) {
    const from = spans[at + 2]! - startMs;
    (names[spans[at]!] === "step" ? steps : kernels).push({ from, to: from + spans[at + 3]! });
  }
  return { steps: steps.sort((a, b) => a.from - b.from), kernels };
}

/** Time that at least one of the intervals covers. */
function covered(intervals: readonly Interval[]): number {
  let total = 0;
  let reached = Number.NEGATIVE_INFINITY;
  for (const { from, to } of [...intervals].sort((a, b) => a.from - b.from)) {
    total += Math.max(0, to - Math.max(from, reached));
    reached = Math.max(reached, to);
  }
  return total;
}
