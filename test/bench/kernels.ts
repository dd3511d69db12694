import { readdirSync } from "node:fs";
import { checkFigures, printFigures } from "./figure-table.ts";
import { type BenchLine, benchLines, buildBenchPrograms } from "./native-figures.ts";
import type { BenchOptions } from "./options.ts";

/** Programs of other parts; every other file of native/bench times kernels. */
const OTHERS = ["engine", "exchange", "expert_parallel", "transfer"];

/** Every operation against the machine's limits: linear algebra, attention, and what else native/bench has. */
export async function benchKernels(options: BenchOptions): Promise<void> {
  const sources = readdirSync(new URL("../../native/bench", import.meta.url));
  const programs = sources.filter((file) => file.endsWith(".cc")).map((file) => file.slice(0, -3));
  for (const program of programs.sort()) {
    if (!OTHERS.includes(program)) await benchProgram("kernels", program, options);
  }
}

/** Runs one program, prints its tables, checks its promises; returns what it told. */
export async function benchProgram(
  part: string,
  program: string,
  options: BenchOptions,
  args: readonly string[] = [],
): Promise<readonly BenchLine[]> {
  buildBenchPrograms();
  const lines: BenchLine[] = [];
  for await (const line of benchLines(program, [...args, ...(options.quick ? ["--quick"] : [])])) {
    lines.push(line);
    if (line.kind === "figure") process.stderr.write(".");
  }
  process.stderr.write("\n");
  const figures = lines.filter((line) => line.kind === "figure");
  options.results.add(part, lines);
  printFigures(
    lines.find((line) => line.kind === "machine")!,
    lines.filter((line) => line.kind === "limit"),
    figures,
  );
  checkFigures(figures, options.promises);
  return lines;
}
