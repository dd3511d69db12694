import { fileURLToPath } from "node:url";
import { beforeAll, describe, expect, test } from "vitest";
import type { ModelName } from "#protocol/ids.ts";
import { loadServedModel, type ServedModel } from "../../control-plane/chat/served-model.ts";
import { runScenario } from "../../control-plane/simulate/chaos.ts";
import { describeChaos, runChaos } from "../../control-plane/simulate/chaos-report.ts";
import { scenarioOf } from "../../control-plane/simulate/scenario.ts";

let model: ServedModel;

beforeAll(async () => {
  model = await loadServedModel("sim" as ModelName, fileURLToPath(new URL("../../models/nano", import.meta.url)));
});

describe("a whole system under virtual time", () => {
  test("without faults every request is answered, and right", async () => {
    const report = await runChaos({ firstSeed: 1, seeds: 4, requests: 60 }, { model, calm: true });
    expect(describeChaos(report)).toContain("no invariant broke");
    expect(Object.keys(report.ends).sort()).toEqual(["left", "ok"]);
  });

  test("a seed reproduces a run, event by event", async () => {
    const scenario = scenarioOf(7, { requests: 60 });
    const first = await runScenario(scenario, { model, record: true });
    const again = await runScenario(scenario, { model, record: true });
    expect(first.history.length).toBeGreaterThan(500);
    expect(again).toEqual(first);
    const other = await runScenario(scenarioOf(8, { requests: 60 }), { model, record: true });
    expect(other.history).not.toEqual(first.history);
  });

  test("an engine that takes pages without a look at the generation of their handle is found, and the way to it is shown", {
    timeout: 300_000,
  }, async () => {
    const planted = { trustsPages: true };
    const report = await runChaos({ firstSeed: 85, seeds: 60, requests: 100 }, { model, planted });
    expect(report.failure?.sentence).toMatch(/^(pages|tokens|a node failed): /);
    expect(report.failure!.shrunkRequests).toBeLessThan(100);
    expect(report.failure!.history.length).toBeGreaterThan(10);
    expect(describeChaos(report)).toContain(`--seed ${report.failure!.seed} --seeds 1 --requests 100`);
  });
});

/** Each found a mistake once. */
describe("seeds that found mistakes", () => {
  test.each([
    [8, 100, "the answer to a start was lost and the stream was over: its text went on after its end"],
    [16, 100, "the answer to a start was lost and every token was there: they were to be computed again"],
    [195, 100, "a step of an engine that had failed closed a sequence, and the process ended by that"],
    [25, 100, "a gap was asked for and filled meanwhile: the request failed as invalid"],
  ])("seed %i with %i requests: %s", async (seed, requests) => {
    const { broken } = await runScenario(scenarioOf(seed, { requests }), { model });
    expect(broken?.message ?? null).toBeNull();
  });
});
