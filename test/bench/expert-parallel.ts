import { mkdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { drawTrace, pngOf } from "../../control-plane/cli/trace-chart.ts";
import { RankId } from "../../control-plane/protocol/ids.ts";
import { benchProgram } from "./kernels.ts";
import type { TraceLine } from "./native-figures.ts";
import type { BenchOptions } from "./options.ts";

const folder = fileURLToPath(new URL("../../.margay/bench/", import.meta.url));

/** Ranks that share experts: their layouts, what of the exchange is hidden, and the picture of such a step. */
export async function benchExpertParallel(options: BenchOptions): Promise<void> {
  await benchProgram("ep", "exchange", options);
  const lines = await benchProgram("ep", "expert_parallel", options);
  const traced = lines.find((line) => line.kind === "trace");
  if (traced === undefined) return;
  mkdirSync(folder, { recursive: true });
  const file = `${folder}expert-parallel-step`;
  writeFileSync(`${file}.svg`, drawStep(traced));
  const drawn = (await pngOf(`${file}.svg`, `${file}.png`)) ? "png" : "svg";
  process.stdout.write(`a step of two ranks over the modelled link: ${file}.${drawn}\n`);
}

function drawStep({ spans }: TraceLine): string {
  const numbers = [...new Set(spans.map(({ rank }) => rank))].sort();
  const ranks = numbers.map((number) => ({
    rank: { rankId: RankId.parse(`w0-r${number}`), role: "decode" as const, pid: process.pid },
    spans: spans.filter(({ rank }) => rank === number),
  }));
  return drawTrace(ranks, Math.max(...spans.map(({ startMs, ms }) => startMs + ms)));
}
