import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { ProgramRun } from "./native-program.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** As -fsanitize= takes it. */
export type Sanitizer = "address,undefined" | "thread";

const folderOf = (sanitizer: Sanitizer) => join(root, "native/build", `sanitized-${sanitizer.replace(",", "-")}`);

/** Why programs with this sanitizer cannot be built or run here, or `undefined`. */
export function sanitizerFault(sanitizer: Sanitizer): string | undefined {
  const folder = mkdtempSync(join(tmpdir(), "margay-sanitizer-"));
  try {
    const source = join(folder, "empty.cc");
    const program = join(folder, "empty");
    writeFileSync(source, "int main() { return 0; }\n");
    const built = spawnSync(process.env.CXX ?? "c++", [`-fsanitize=${sanitizer}`, source, "-o", program], {
      encoding: "utf8",
      timeout: 60_000,
    });
    if (built.status !== 0) return `the compiler has no runtime for -fsanitize=${sanitizer}`;
    const run = spawnSync(program, { encoding: "utf8", timeout: 60_000 });
    return run.status === 0 ? undefined : `a program with -fsanitize=${sanitizer} does not run: ${run.stderr}`;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Builds these test programs with the sanitizer, beside the usual build. Throws with the compiler's words. */
export function buildSanitized(sanitizer: Sanitizer, programs: readonly string[]): void {
  const folder = folderOf(sanitizer);
  const run = (args: readonly string[]) => {
    const done = spawnSync("cmake", [...args], { encoding: "utf8", timeout: 15 * 60_000, maxBuffer: 1 << 26 });
    if (done.status !== 0) throw new Error(`the sanitized programs do not build:\n${done.stdout}${done.stderr}`);
  };
  run([
    ...["-S", join(root, "native"), "-B", folder, "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"],
    `-DMARGAY_SANITIZE=${sanitizer}`,
  ]);
  run(["--build", folder, "--parallel", String(availableParallelism()), "--target", ...programs]);
}

/** Runs a sanitized program to its end. What a sanitizer finds ends it with another status than 0. */
export function runSanitized(sanitizer: Sanitizer, program: string, args: readonly string[]): ProgramRun {
  const run = spawnSync(join(folderOf(sanitizer), "tests", program), [...args], {
    cwd: root,
    encoding: "utf8",
    timeout: 120_000,
    maxBuffer: 1 << 26,
  });
  if (run.error !== undefined) throw run.error;
  return { status: run.status, stdout: run.stdout, stderr: run.stderr };
}
