import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { drawShares } from "./chart.ts";
import type { BenchLine, Figure, LimitLine, MachineLine } from "./native-figures.ts";

const folder = fileURLToPath(new URL("../../.margay/bench", import.meta.url));

/** Keeps the figures of one run of `npm run bench`; `write` leaves them as JSON and as a picture in .margay/bench. */
export class Results {
  readonly #runs: { part: string; machine: MachineLine; limits: LimitLine[]; figures: Figure[] }[] = [];

  /** Adds what one program printed. */
  add(part: string, lines: readonly BenchLine[]): void {
    const machine = lines.find((line) => line.kind === "machine");
    if (machine === undefined) throw new Error(`the benchmark ${part} did not say on what machine it ran`);
    const limits = lines.filter((line) => line.kind === "limit");
    this.#runs.push({ part, machine, limits, figures: lines.filter((line) => line.kind === "figure") });
  }

  /** Returns the files written; none when nothing was measured natively. */
  write(): readonly string[] {
    const [first] = this.#runs;
    if (first === undefined) return [];
    mkdirSync(folder, { recursive: true });
    const json = join(folder, "results.json");
    writeFileSync(json, `${JSON.stringify({ measuredAt: new Date().toISOString(), runs: this.#runs }, null, 1)}\n`);
    const chart = join(folder, "share-of-limit.svg");
    const subtitle = `${first.machine.processor}, ${first.machine.cores} cores, ${first.machine.features}`;
    writeFileSync(
      chart,
      drawShares(
        this.#runs.flatMap(({ figures }) => figures),
        subtitle,
      ),
    );
    return [json, chart];
  }
}
