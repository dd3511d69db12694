import { fileURLToPath } from "node:url";
import { beforeAll, describe, expect, it } from "vitest";
import { buildNativePrograms, nativeReport } from "../support/native-program.ts";

/** A line of native/tests/linear.cc, which says what the properties are. */
interface Line {
  readonly path: string;
  readonly op: string;
  readonly shapes: number;
  readonly worst: number;
}

let lines: readonly Line[] = [];
beforeAll(() => {
  buildNativePrograms();
  lines = nativeReport("linear", []) as readonly Line[];
}, 20 * 60_000);

describe("matrix products on every path of this machine", () => {
  const of = (op: string): readonly Line[] => {
    const found = lines.filter((line) => line.op === op);
    expect(found.map(({ path }) => path)).toContain("generic");
    return found;
  };

  it.each(["bf16", "f32", "fp8", "int8", "grouped_gate_up"])(
    "%s agrees with the reference within 5e-6 over ugly shapes",
    (op) => {
      for (const line of of(op)) {
        expect(line.shapes).toBeGreaterThan(8);
        expect(line.worst, line.path).toBeLessThanOrEqual(5e-6);
      }
    },
  );

  it.each(["bf16", "f32", "fp8", "int8"])("%s: a row's bits do not depend on its company", (format) => {
    for (const line of of(`${format}_row_alone`)) expect(line.worst, line.path).toBe(0);
  });
});

/** A line of native/tests/int8_weights.cc. */
interface Int8Line {
  readonly path: string;
  readonly positions: number;
  readonly nmse: number;
  readonly plain_nmse: number;
  readonly same_top: number;
  readonly share: number;
  readonly other_hash: boolean;
}

it("int8 weights cost nano less than 2e-3 of its logits' variance, and are never taken for exact ones", () => {
  const nano = fileURLToPath(new URL("../../models/nano", import.meta.url));
  const report = nativeReport("int8_weights", [nano, `${nano}/golden.safetensors`]) as readonly Int8Line[];
  expect(report.map(({ path }) => path)).toContain("generic");
  for (const line of report) {
    expect(line.positions, line.path).toBeGreaterThan(100);
    expect(line.nmse, line.path).toBeGreaterThan(line.plain_nmse);
    expect(line.nmse, line.path).toBeLessThan(2e-3);
    expect(line.same_top, line.path).toBeGreaterThan(0.95);
    expect(line.share, line.path).toBeLessThan(0.7);
    expect(line.other_hash, line.path).toBe(true);
  }
}, 120_000);
