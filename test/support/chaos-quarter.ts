import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import type { ModelName } from "#protocol/ids.ts";
import { loadServedModel } from "../../control-plane/chat/served-model.ts";
import { describeChaos, runChaos } from "../../control-plane/simulate/chaos-report.ts";

/** 100,000 requests over 200 seeds, in quarters that run beside each other. `margay simulate --chaos` takes any. */
const SEEDS = 50;
const REQUESTS = 500;

/** A quarter of the seeds, 0 to 3, as a test of its own. */
export function testChaosQuarter(quarter: number): void {
  const firstSeed = 1 + quarter * SEEDS;
  const seeds = `seeds ${firstSeed} to ${firstSeed + SEEDS - 1}, ${REQUESTS} requests each`;
  test(`crashes, stalls, lies and a bad network break no invariant: ${seeds}`, { timeout: 900_000 }, async () => {
    const folder = fileURLToPath(new URL("../../models/nano", import.meta.url));
    const model = await loadServedModel("sim" as ModelName, folder);
    const report = await runChaos({ firstSeed, seeds: SEEDS, requests: REQUESTS }, { model });
    expect(report.failure === null ? "" : describeChaos(report)).toBe("");
    expect(report.requests).toBe(SEEDS * REQUESTS);
  });
}
