import { fileURLToPath } from "node:url";
import { beforeAll, describe, expect, it } from "vitest";
import { goldenFolder } from "../support/checkpoint-files.ts";
import { buildNativePrograms, nativeReport, runNativeProgram } from "../support/native-program.ts";

/** One line of native/tests/expert_parallel.cc, which says what the fields mean. */
interface Line {
  readonly path: string;
  readonly deterministic: boolean;
  readonly ranks: number;
  readonly max_diff: number;
  readonly argmax_wrong: number;
  readonly same_as_alone: boolean;
  readonly replicated: boolean;
  readonly fp8_error: number | null;
}

const nano = fileURLToPath(new URL("../../models/nano", import.meta.url));

beforeAll(() => buildNativePrograms(), 20 * 60_000);

it("a layer's stages wait for all that they touch, and any order that these waits allow gives the same bits", () => {
  const { status, stdout } = runNativeProgram("layer_schedule", [nano]);
  const claims = stdout.trim().split("\n");
  expect(claims.filter((claim) => !claim.startsWith("ok: "))).toEqual([]);
  expect(claims).toHaveLength(9);
  expect(status).toBe(0);
}, 120_000);

describe.each([
  ["plain", goldenFolder("plain"), ["all"]],
  ["wide", goldenFolder("wide"), []],
  ["nano", nano, []],
])("logits of %s by groups of 1, 2, 3 and 4 ranks", (_, folder, paths) => {
  let lines: readonly Line[] = [];
  beforeAll(() => {
    lines = nativeReport("expert_parallel", [folder, `${folder}/golden.safetensors`, ...paths]) as readonly Line[];
  }, 120_000);
  const promised = () => lines.filter(({ deterministic }) => deterministic);

  it("deterministic, are those of a rank alone to the bit, drafts and replicated experts included", () => {
    expect(new Set(promised().map(({ ranks }) => ranks))).toEqual(new Set([1, 2, 3, 4]));
    expect(new Set(promised().map(({ path }) => path)).size).toBeGreaterThan(1);
    for (const line of promised()) expect(line).toMatchObject({ same_as_alone: true, replicated: true });
  });

  it("ref is within 1e-4 of the recorded ones", () => {
    for (const { path, max_diff } of lines) if (path === "ref") expect(max_diff).toBeLessThan(1e-4);
  });

  it("cpu, its rows travelling as bf16, is within 3e-2 where no choice of an expert is close, and errs on no arg-max", () => {
    const usual = lines.filter(({ deterministic }) => !deterministic);
    expect(usual.map(({ ranks }) => ranks)).toEqual([1, 2, 3, 4]);
    for (const line of usual) {
      expect(line.same_as_alone).toBe(line.ranks === 1);
      expect(line.argmax_wrong).toBe(0);
      if (folder !== nano) expect(line.max_diff).toBeLessThan(3e-2);
    }
  });

  it("change by less than e4m3 rounds a value at most, a sixteenth, when rows travel as fp8", () => {
    const usual = lines.filter(({ deterministic, ranks }) => !deterministic && ranks > 1);
    expect(usual).toHaveLength(3);
    for (const { fp8_error } of usual) {
      expect(fp8_error).toBeGreaterThan(0);
      expect(fp8_error).toBeLessThan(1 / 16);
    }
  });
});
