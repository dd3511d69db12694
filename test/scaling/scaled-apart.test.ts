import { fileURLToPath } from "node:url";
import { beforeAll, describe, expect, test } from "vitest";
import type { ModelName } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import { loadServedModel, type ServedModel } from "../../control-plane/chat/served-model.ts";
import type { Scenario, SimRequest } from "../../control-plane/simulate/scenario.ts";
import { scenarioOf } from "../../control-plane/simulate/scenario.ts";
import { startCall } from "../../control-plane/simulate/sim-client.ts";
import { SIM_MODEL, SimWorld } from "../../control-plane/simulate/sim-world.ts";

/** The whole system under virtual time: control plane, nodes, scaler; loads that lean to one role. */

let model: ServedModel;

beforeAll(async () => {
  model = await loadServedModel("sim" as ModelName, fileURLToPath(new URL("../../models/nano", import.meta.url)));
});

interface Load {
  readonly perSecond: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
}

const QUIET: Load = { perSecond: 0.2, promptTokens: 16, outputTokens: 4 };

function requestsOf(load: Load, fromMs: number, untilMs: number, first: number): SimRequest[] {
  const count = Math.floor(((untilMs - fromMs) / 1000) * load.perSecond);
  return Array.from({ length: count }, (_, i) => ({
    number: first + i,
    atMs: fromMs + (i * 1000) / load.perSecond,
    // No two alike, so that no cache helps.
    prompt: Int32Array.from({ length: load.promptTokens }, (_, at) => 16 + ((at * 31 + (first + i) * 977) % 2000)),
    maxTokens: load.outputTokens,
    stream: true,
    stopsEarly: false,
    leavesAfterMs: null,
    gateway: 0,
  }));
}

/** Most workers of each role that were wanted in a span of time, and how many at the very end. */
async function played(load: Load, slots: number) {
  const quietMs = 240_000;
  const [beginMs, endMs] = [10_000, 45_000];
  const requests = [
    ...requestsOf(QUIET, 0, beginMs, 0),
    ...requestsOf(load, beginMs, endMs, 1_000),
    ...requestsOf(QUIET, endMs, endMs + quietMs, 100_000),
  ];
  const calm = scenarioOf(3, { requests: 1, calm: true });
  const scenario: Scenario = {
    ...{ ...calm, requests, controlPlanes: 1, localPrefillTokens: 0, minWorkers: 0, maxWorkers: 4, idleMs: 60_000 },
    ...{ pool: { slots, kvBlocks: 512, maxStepTokens: 128 }, startMs: [1_500, 1_500], stepMs: 20 },
  };
  const world = new SimWorld(scenario, { model, planted: {}, note: () => {}, logs: false });
  await world.start();
  let answered = 0;
  const ends = new Set<string>();
  for (const request of requests) {
    world.time.at(request.atMs, () =>
      startCall({ request, gateway: 0, stop: null }, world.time, (c) => world.connect(0, c), {
        text: () => {},
        answer: (call) => {
          answered++;
          ends.add(call.answer?.kind ?? "none");
        },
      }),
    );
  }
  const most: Record<Role, number> = { prefill: 0, decode: 0 };
  const wanted = (role: Role): number => world.target.wanted(SIM_MODEL, role);
  for (let at = 500; at < endMs; at += 500) {
    world.time.at(at, () => {
      for (const role of ["prefill", "decode"] as const) most[role] = Math.max(most[role], wanted(role));
    });
  }
  await world.time.run(endMs + quietMs + 20_000, () => answered === requests.length);
  const left = { prefill: wanted("prefill"), decode: wanted("decode") };
  await world.close();
  expect([...ends]).toEqual(["ok"]);
  return { most, left };
}

describe("loads that lean to one role", { timeout: 120_000 }, () => {
  test("long prompts with short answers grow prefill workers alone, and they go again", async () => {
    const { most, left } = await played({ perSecond: 12, promptTokens: 400, outputTokens: 2 }, 32);
    expect(most.prefill).toBeGreaterThan(1);
    expect(most.decode).toBe(1);
    expect(left).toEqual({ prefill: 1, decode: 1 });
  });

  test("short prompts with long answers grow decode workers alone, and they go again", async () => {
    const { most, left } = await played({ perSecond: 6, promptTokens: 16, outputTokens: 100 }, 6);
    expect(most.decode).toBeGreaterThan(1);
    expect(most.prefill).toBe(1);
    expect(left).toEqual({ prefill: 1, decode: 1 });
  });
});
