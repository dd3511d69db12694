import { beforeAll, expect, test } from "vitest";
import { buildNativePrograms, type ProgramRun, runNativeProgram } from "./native-program.ts";

/** One test per claim that native/tests/`program` checks; a claim that it does not print fails too. */
export function testNativeClaims(program: string, args: readonly string[], claims: readonly string[]): void {
  let run: ProgramRun;
  let lines: readonly string[];
  beforeAll(() => {
    buildNativePrograms();
    run = runNativeProgram(program, args);
    lines = run.stdout.trim().split("\n");
  }, 20 * 60_000);

  test.each(claims)("%s", (claim) => {
    const line = lines.find((l) => l.startsWith(`ok: ${claim}`) || l.startsWith(`FAILED: ${claim}`));
    expect(line ?? `${program} ended with ${run.status}: ${run.stderr}`).toBe(`ok: ${claim}`);
  });

  test("nothing else is claimed, and the program ends well", () => {
    expect(lines.length, lines.join("\n")).toBe(claims.length);
    expect(run.status, run.stderr).toBe(0);
  });
}
