import { beforeAll, describe, expect, it } from "vitest";
import { buildNativePrograms, nativeReport } from "../support/native-program.ts";

/** A line of native/tests/attention.cc, which says what the properties are. */
interface Line {
  readonly path: string;
  readonly op: string;
  readonly shapes: number;
  readonly worst: number;
}

let lines: readonly Line[] = [];
beforeAll(() => {
  buildNativePrograms();
  lines = nativeReport("attention", []) as readonly Line[];
}, 20 * 60_000);

describe("attention on every code path of this machine", () => {
  const of = (op: string): readonly Line[] => {
    const found = lines.filter((line) => line.op === op);
    expect(found.map(({ path }) => path)).toContain("generic");
    return found;
  };

  it.each([
    ["attention", 3e-6],
    ["expanded", 3e-6],
    ["rotate", 1e-6],
  ])("%s agrees with double precision within %d over ugly shapes", (op, tolerance) => {
    for (const line of of(op)) {
      expect(line.shapes).toBeGreaterThan(6);
      expect(line.worst, line.path).toBeLessThanOrEqual(tolerance);
    }
  });

  it("a row's bits depend neither on the batch, nor on blocks it shares, nor on the number of threads", () => {
    for (const line of of("company")) expect(line.worst, line.path).toBe(0);
  });
});
