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

  // Tiles multiply queries and weights cut into two bf16 parts each.
  const tolerance = (path: string): number => (/amx|tiles/.test(path) ? 3e-5 : 3e-6);

  it.each(["attention", "expanded", "rotate"])("%s agrees with double precision over ugly shapes", (op) => {
    for (const line of of(op)) {
      expect(line.shapes).toBeGreaterThan(6);
      expect(line.worst, line.path).toBeLessThanOrEqual(tolerance(line.path));
    }
  });

  it("a row's bits depend neither on the batch, nor on blocks it shares, nor on the number of threads", () => {
    for (const line of of("company")) expect(line.worst, line.path).toBe(0);
  });
});
