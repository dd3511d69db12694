import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { GPUS, MODELS, type MoeShape } from "../../control-plane/planner/moe-shape.ts";
import {
  decodeStep,
  dollarsPerMillion,
  kvTokensPerGpu,
  MEASURED_EFFICIENCY,
  prefillSeconds,
} from "../../control-plane/planner/step-time.ts";

const h800 = GPUS[0]!;
const table = JSON.parse(readFileSync(new URL("../fixtures/table-7.json", import.meta.url), "utf8")) as {
  readonly rows: readonly (Record<string, number> & { readonly model: string })[];
};

function shapeOf(name: string): MoeShape {
  return MODELS.find((model) => model.name === name)!;
}

function within(value: number, printed: number, share: number): void {
  expect(Math.abs(value / printed - 1), `${value} for ${printed}`).toBeLessThanOrEqual(share);
}

describe("the report's Table 7", () => {
  test.each(table.rows.map((row) => [row.model, row] as const))(
    "%s: TPOT within 3 %, dollars within 6 %",
    (name, row) => {
      const step = decodeStep({ model: shapeOf(name), gpu: h800, width: 128, requestsPerGpu: 96, context: 5_000 });
      within(step.tpotMs, row.tpotMs!, 0.03);
      within(dollarsPerMillion(h800, 96, step.tpotMs), row.dollars!, 0.06);
      for (const part of ["attentionUs", "dispatchUs", "expertsUs", "combineUs"] as const)
        within(step[part], row[part]!, 0.03);
    },
  );
});

describe("beyond the table", () => {
  const longcat = shapeOf("longcat-flash");
  const at = (width: number, requestsPerGpu: number) =>
    decodeStep({ model: longcat, gpu: h800, width, requestsPerGpu, context: 5_000 }).tpotMs;

  test("fewer requests per GPU make a token faster, and dearer", () => {
    expect(at(128, 32)).toBeLessThan(at(128, 96));
    expect(dollarsPerMillion(h800, 32, at(128, 32))).toBeGreaterThan(dollarsPerMillion(h800, 96, at(128, 96)));
  });

  test("a narrow group reads more experts than its rows pay for", () => {
    expect(at(16, 8)).toBeGreaterThan(at(128, 8));
  });

  test("the weights of LongCat-Flash fit sixteen H800 and not eight", () => {
    expect(kvTokensPerGpu(longcat, h800, 8)).toBe(0);
    expect(kvTokensPerGpu(longcat, h800, 16)).toBeGreaterThan(0);
    expect(kvTokensPerGpu(longcat, h800, 128)).toBeGreaterThan(96 * 5_000);
  });

  test("eight GPUs prefill what DeepSeek measured in production, and a long prompt costs more per token", () => {
    const seconds = prefillSeconds({ model: shapeOf("deepseek-v3"), gpu: h800 }, MEASURED_EFFICIENCY, 1_000, 0);
    within((8 * 1_000) / seconds, 32_200, 0.05);
    const short = prefillSeconds({ model: longcat, gpu: h800 }, MEASURED_EFFICIENCY, 1_000, 0);
    const behind = prefillSeconds({ model: longcat, gpu: h800 }, MEASURED_EFFICIENCY, 1_000, 100_000);
    expect(behind).toBeGreaterThan(2 * short);
  });
});
