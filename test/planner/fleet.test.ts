import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { planFleet, tableSeven } from "../../control-plane/planner/fleet-plan.ts";
import { GPUS, MODELS } from "../../control-plane/planner/moe-shape.ts";
import { MEASURED_EFFICIENCY } from "../../control-plane/planner/step-time.ts";
import { bestOf, comparePolicies, figuresFor, runPlanner } from "../../control-plane/simulate/compare-policies.ts";
import { FleetModel } from "../../control-plane/simulate/fleet-model.ts";
import { runFleet } from "../../control-plane/simulate/fleet-run.ts";
import { drawCharts } from "../../control-plane/simulate/svg-chart.ts";
import { multiplied, readTrace } from "../../control-plane/simulate/trace-file.ts";

const fixture = (name: string): string => fileURLToPath(new URL(`../fixtures/traces/${name}`, import.meta.url));
const [h800, h200] = [GPUS[0]!, GPUS[1]!];
const longcat = MODELS.find(({ name }) => name === "longcat-flash")!;

function fleet(changes: object = {}): FleetModel {
  return new FleetModel({
    ...{ model: longcat, gpu: h200, efficiency: MEASURED_EFFICIENCY, prefillGpus: 8, decodeGpus: 8, mostGroups: 16 },
    ...{ ttftGoalMs: 4_000, tpotGoalMs: 50, coldStartMs: 60_000, ...changes },
  });
}

describe("traces", () => {
  test("Mooncake's give shared prefixes, Azure's times from their first request on", () => {
    const mooncake = readTrace(fixture("mooncake.jsonl"));
    expect(mooncake.length).toBe(40);
    expect(mooncake[0]).toMatchObject({ atMs: 0, promptTokens: 6_758, outputTokens: 500, cachedTokens: 0 });
    expect(mooncake[1]!.cachedTokens).toBe(512);
    const azure = readTrace(fixture("azure.csv"));
    expect(azure.length).toBe(40);
    expect(azure[0]).toMatchObject({ atMs: 0, promptTokens: 374, outputTokens: 44, cachedTokens: 0 });
    expect(azure[1]!.atMs).toBe(4_315);
  });

  test("a copy of a trace is all of it again, later", () => {
    const trace = readTrace(fixture("azure.csv"));
    const four = multiplied(trace, 4);
    expect(four.length).toBe(160);
    const tokens = (list: typeof trace): number => list.reduce((sum, { promptTokens }) => sum + promptTokens, 0);
    expect(tokens(four)).toBe(4 * tokens(trace));
  });

  test("a file that is none is refused with its line", () => {
    expect(() => readTrace(fixture("README.md"))).toThrow(/README\.md:1: no request of a Mooncake trace/);
  });
});

describe("a modelled fleet", () => {
  const trace = multiplied(readTrace(fixture("mooncake.jsonl")), 10);

  test("serves every request once, and costs what its groups cost", () => {
    const run = runFleet(trace, fleet(), () => ({ prefill: 4, decode: 3 }), { prefill: 4, decode: 3 });
    expect(run.served.length).toBe(trace.length);
    expect(run.gpuSeconds).toBeCloseTo((7 * 8 * run.endMs) / 1000, 0);
    const tokens = run.served.reduce((sum, one) => sum + one.outputTokens, 0);
    expect(tokens).toBe(trace.reduce((sum, one) => sum + one.outputTokens, 0));
  });

  test("a lone request takes its own prefill and steps, no more", () => {
    const model = fleet();
    const one = [{ atMs: 0, promptTokens: 6_000, cachedTokens: 0, outputTokens: 101 }];
    const { served } = runFleet(one, model, () => ({ prefill: 1, decode: 1 }), { prefill: 1, decode: 1 });
    expect(served[0]!.ttftMs).toBeCloseTo(model.prefillMs(6_000, 0), 3);
    expect(served[0]!.tpotMs).toBeCloseTo(model.tokenMs(1, 6_101) + model.transferMs(6_000) / 100, 3);
  });

  test("a group that is asked for takes requests after its cold start, and one that leaves finishes its streams", () => {
    const model = fleet({ coldStartMs: 20_000 });
    const first = { prefill: 1, decode: 3 };
    const change = { prefill: 6, decode: 1 };
    const run = runFleet(trace, model, ({ nowMs }) => (nowMs < 4_000 ? first : change), first);
    expect(run.served.length).toBe(trace.length);
    const held = runFleet(trace, model, () => first, first);
    // Five groups more were paid for from the wish on, two fewer from the end of their streams on.
    expect(run.gpuSeconds / run.endMs).toBeGreaterThan(held.gpuSeconds / held.endMs);
  });

  test("a model that does not fit is refused", () => {
    expect(() => fleet({ gpu: h800 })).toThrow(/longcat-flash does not fit 8 h800/);
  });
});

describe("policies on a short trace", () => {
  const trace = multiplied(readTrace(fixture("mooncake.jsonl")), 30);

  test("each baseline has twenty settings or more, and all serve every request", () => {
    const outcomes = comparePolicies(trace, fleet());
    for (const policy of ["knative", "hpa"] as const) {
      expect(outcomes.filter((one) => one.policy === policy).length).toBeGreaterThanOrEqual(20);
    }
    expect(outcomes.filter((one) => one.policy === "planner").length).toBe(1);
    for (const { figures } of outcomes) expect(figures.requests).toBe(trace.length);
    const cheap = bestOf(outcomes, "knative");
    if (cheap !== null) expect(cheap.figures.attained).toBeGreaterThanOrEqual(0.95);
  });

  test("equal traces give equal figures", () => {
    const figures = () => figuresFor(runPlanner(trace, fleet()), trace, fleet());
    expect(figures()).toEqual(figures());
  });
});

describe("a plan", () => {
  const traffic = { requestsPerSecond: 1, promptTokens: 4_500, cachedTokens: 0, outputTokens: 1_000 };
  const ask = (changes: object) =>
    planFleet({
      ...{ model: longcat, gpu: h800, efficiency: MEASURED_EFFICIENCY, traffic, gpus: 128 },
      ...{ ttftGoalMs: 4_000, tpotGoalMs: 50, ...changes },
    });

  test("uses no more GPUs than there are, keeps the goals, and puts the best first", () => {
    const plans = ask({});
    expect(plans.length).toBeGreaterThan(1);
    for (const plan of plans) {
      expect(plan.prefillGpus + plan.decodeGpus).toBeLessThanOrEqual(128);
      expect(plan.decodeGpus % plan.width).toBe(0);
      expect(plan.tpotMs).toBeLessThanOrEqual(50);
      expect(plan.requestsPerSecond).toBeLessThanOrEqual(plans[0]!.requestsPerSecond);
    }
  });

  test("long answers get more decoding, and a goal below any step none at all", () => {
    const longer = ask({ traffic: { ...traffic, outputTokens: 4_000 } })[0]!;
    expect(longer.decodeGpus / longer.prefillGpus).toBeGreaterThan(ask({})[0]!.decodeGpus / ask({})[0]!.prefillGpus);
    expect(ask({ tpotGoalMs: 1 })).toEqual([]);
    expect(ask({ gpus: 16 })).toEqual([]);
  });

  test("tells the table from what is assumed beyond it", () => {
    expect(tableSeven(longcat, h800).tpotMs).toBeCloseTo(16, 0);
  });
});

test("a drawing holds every series, and its text is text", () => {
  const svg = drawCharts([
    {
      title: "a < b",
      x: "s",
      y: "",
      series: [
        {
          name: "p & d",
          as: "steps",
          points: [
            [0, 1],
            [5, 4],
          ],
        },
      ],
    },
  ]);
  expect(svg).toContain("a &lt; b");
  expect(svg).toContain("p &amp; d");
  expect(svg).not.toContain("NaN");
});
