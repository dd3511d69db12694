import { beforeAll, describe, expect, it } from "vitest";
import { goldenFolder } from "../support/checkpoint-files.ts";
import { buildNativePrograms, nativeReport } from "../support/native-program.ts";

/** A line of native/tests/kernels.cc. */
interface Line {
  readonly path: string;
  readonly op: string;
  readonly shapes: number;
  readonly worst: number;
}

/** A line of native/tests/forced_routing.cc. */
interface Routed {
  readonly path: string;
  readonly routing: string;
  readonly max_diff: number;
}

let lines: readonly Line[] = [];
beforeAll(() => {
  buildNativePrograms();
  lines = nativeReport("kernels", []) as readonly Line[];
}, 20 * 60_000);

describe("every code path of this machine", () => {
  const of = (op: string): readonly Line[] => {
    const found = lines.filter((line) => line.op === op);
    expect(found.map(({ path }) => path)).toContain("generic");
    return found;
  };

  it.each([
    ["rms_norm", 1e-6],
    ["silu_mul", 1e-7],
    ["softmax", 1e-6],
    ["rms_norm_bf16", 0],
    ["add_norm", 1e-6],
    ["weighted_sum", 1e-6],
    ["top_slots", 0],
    ["bf16", 0],
    ["fp8", 0],
    ["add_scaled", 1e-6],
  ])("%s agrees with the reference within %d over ugly shapes", (op, tolerance) => {
    for (const line of of(op)) {
      expect(line.shapes).toBeGreaterThan(8);
      expect(line.worst, line.path).toBeLessThanOrEqual(tolerance);
    }
  });
});

describe.each(["mostly-zero-experts", "no-zero-experts", "fp8"])("prescribed experts on %s", (name) => {
  it("cpu agrees with ref when all tokens are identity, when experts are empty, and when all are used", () => {
    const routed = nativeReport("forced_routing", [goldenFolder(name)]) as readonly Routed[];
    expect(new Set(routed.map(({ routing }) => routing)).size).toBe(name === "no-zero-experts" ? 2 : 3);
    for (const line of routed) expect(line.max_diff, `${line.path}, ${line.routing}`).toBeLessThan(3e-2);
  });
});
