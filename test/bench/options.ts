import type { Promises } from "./report.ts";
import type { Results } from "./results.ts";

export interface BenchOptions {
  readonly backend: "ref" | "cpu";
  /** Less of everything, to try the benchmark itself. */
  readonly quick: boolean;
  readonly promises: Promises;
  /** Figures of native programs. */
  readonly results: Results;
}
