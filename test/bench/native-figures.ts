import { spawn, spawnSync } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Median, least and most over the rounds. `null`: does not apply. */
export type Spread = readonly [median: number | null, least: number | null, most: number | null];

export interface MachineLine {
  readonly kind: "machine";
  readonly processor: string;
  /** Instruction sets that the code paths ask for, separated by blanks. */
  readonly features: string;
  readonly cores: number;
  readonly load: number | null;
}

/** What the machine can do at most, measured by the program itself. */
export interface LimitLine {
  readonly kind: "limit";
  readonly name: string;
  readonly threads: number;
  readonly unit: string;
  readonly value: Spread;
}

export interface FigurePromise {
  readonly of: "share" | "value";
  /** `value` only: smaller is better. */
  readonly atMost: boolean;
  readonly floor: number;
  readonly goal: number;
}

export interface Figure {
  readonly kind: "figure";
  readonly table: string;
  readonly name: string;
  /** Code path that ran. */
  readonly path: string;
  readonly threads: number;
  readonly unit: string;
  readonly value: Spread;
  /** In the same unit, and what sets it. */
  readonly limit: number | null;
  readonly limitedBy: string;
  /** Of the limit, taken within each round. */
  readonly share: Spread;
  readonly promise?: FigurePromise;
  /** Other processes took cores, or the limit wavered, in too many rounds: it judges nothing. */
  readonly disturbed: boolean;
  /** Others that did the same work by turns, in the same unit. */
  readonly rivals: Readonly<Record<string, Spread>>;
}

/** What ranks did in one step; times in ms since its begin. */
export interface TraceLine {
  readonly kind: "trace";
  readonly spans: readonly {
    readonly rank: number;
    readonly thread: string;
    readonly name: string;
    readonly startMs: number;
    readonly ms: number;
  }[];
}

export type BenchLine = MachineLine | LimitLine | Figure | TraceLine;

/** Builds native/build/bench when a source changed. */
export function buildBenchPrograms(): void {
  const done = spawnSync(process.execPath, ["native/build.mjs", "--bench"], { cwd: root, stdio: "inherit" });
  if (done.status !== 0) throw new Error("the native benchmarks do not build");
}

/** Runs native/build/bench/`name` and yields its lines as they come. Throws when it ends badly. */
export async function* benchLines(name: string, args: readonly string[]): AsyncGenerator<BenchLine> {
  const child = spawn(`${root}native/build/bench/${name}`, [...args], {
    cwd: root,
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = new Promise<string>((resolve) => {
    child.on("error", (error) => resolve(error.message));
    child.on("close", (code, signal) => resolve(code === 0 ? "" : `it ended with ${signal ?? code}`));
  });
  try {
    for await (const line of createInterface(child.stdout)) yield JSON.parse(line) as BenchLine;
  } finally {
    child.kill();
  }
  const wrong = await ended;
  if (wrong !== "") throw new Error(`the benchmark ${name} failed: ${wrong}`);
}

/** Whether a figure kept its promise: `goal` and `floor` are reached, `missed` is not, `disturbed` was not seen. */
export type Verdict = "goal" | "floor" | "missed" | "disturbed" | "";

export function verdictOf({ promise, share, value, disturbed }: Figure): Verdict {
  if (promise === undefined) return "";
  if (disturbed) return "disturbed";
  const seen = promise.of === "share" ? share[0] : value[0];
  if (seen === null) return "missed";
  const reaches = (bound: number) => (promise.atMost ? seen <= bound : seen >= bound);
  return reaches(promise.goal) ? "goal" : reaches(promise.floor) ? "floor" : "missed";
}
