import { afterAll, beforeAll, expect, test } from "vitest";
import { expectNothingHeld } from "../support/pools.ts";
import { storm } from "../support/storm.ts";
import { type System, startSystem } from "../support/system.ts";

let system: System;

beforeAll(async () => {
  system = await startSystem({ MARGAY_BACKEND: "cpu", MARGAY_PREFILL: "2..2", MARGAY_DECODE: "2..2" });
  await system.ready("prefill", 2);
  await system.ready("decode", 2);
});
afterAll(async () => expect(await system.stop()).toBe(0));

test("300 requests of 32 clients with random disconnects: all end, none fails, nothing stays held", async () => {
  const report = await storm({ url: system.url, requests: 300, clients: 32, seed: 7, cutShare: 0.4 });
  expect(report.failures).toEqual([]);
  expect(report.finished + report.cut).toBe(300);
  expect(report.cut).toBeGreaterThan(30);
  await expectNothingHeld(system);
  const inFlight = await system.metric(system.url, "margay_http_requests_in_flight");
  // The one that asks.
  expect([...inFlight.values()]).toEqual([1]);
}, 240_000);
