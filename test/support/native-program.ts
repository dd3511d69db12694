import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Builds native/build/tests when a source changed. Throws with the compiler's words. */
export function buildNativePrograms(): void {
  const done = spawnSync(process.execPath, ["native/build.mjs", "--tests"], {
    cwd: root,
    encoding: "utf8",
    timeout: 20 * 60_000,
  });
  if (done.status !== 0) throw new Error(`the native test programs do not build:\n${done.stderr}`);
}

export interface ProgramRun {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs native/build/tests/`name` to its end, at most `timeoutMs`. */
export function runNativeProgram(name: string, args: readonly string[], timeoutMs = 280_000): ProgramRun {
  const run = spawnSync(`${root}native/build/tests/${name}`, [...args], {
    cwd: root,
    encoding: "utf8",
    timeout: timeoutMs,
    maxBuffer: 1 << 26,
  });
  if (run.error !== undefined) throw run.error;
  return { status: run.status, stdout: run.stdout, stderr: run.stderr };
}

/** Same, for a program that prints one JSON object per line and must end with 0. */
export function nativeReport(name: string, args: readonly string[], timeoutMs?: number): readonly unknown[] {
  const run = runNativeProgram(name, args, timeoutMs);
  if (run.status !== 0) throw new Error(`${name} ended with ${run.status}:\n${run.stderr}`);
  return run.stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as unknown);
}
