import { afterAll, beforeAll, expect, test } from "vitest";
import { expectNothingHeld } from "../support/pools.ts";
import { seeded, storm } from "../support/storm.ts";
import { type System, startSystem } from "../support/system.ts";

/** The short form of `npm run soak`: workers are killed while many clients stream and some of them leave. */

let system: System;

beforeAll(async () => {
  system = await startSystem({ MARGAY_BACKEND: "cpu", MARGAY_PREFILL: "2..2", MARGAY_DECODE: "2..2" });
  await system.ready("prefill", 2);
  await system.ready("decode", 2);
});
afterAll(async () => expect(await system.stop()).toBe(0));

test("workers of both roles are killed under load: every request ends as it should, nothing stays held", async () => {
  const random = seeded(3);
  const killed: string[] = [];
  const report = await storm({
    url: system.url,
    requests: 240,
    clients: 16,
    seed: 5,
    cutShare: 0.2,
    onRequest: async (number) => {
      if (number % 60 !== 30) return;
      const ranks = await system.ranks();
      // Nothing is awaited from here on: on a slow machine two clients may be here at once.
      const role = killed.length % 2 === 0 ? "decode" : "prefill";
      const ready = ranks.filter(
        (rank) => rank.role === role && rank.state === "ready" && !killed.includes(rank.workerId),
      );
      const victim = ready[Math.floor(random() * ready.length)];
      if (victim === undefined) return;
      process.kill(victim.pid, "SIGKILL");
      killed.push(victim.workerId);
    },
  });
  expect(report.failures).toEqual([]);
  expect(report.finished + report.cut).toBe(240);
  expect(killed.length).toBeGreaterThanOrEqual(3);
  // The last one may have been killed a moment ago: its end is counted when the system hears of it.
  await expect.poll(restarts, { timeout: 15_000 }).toBe(killed.length);
  await system.ready("prefill", 2);
  await system.ready("decode", 2);
  await expectNothingHeld(system);
}, 240_000);

async function restarts(): Promise<number> {
  const samples = await system.metric(system.url, "margay_worker_restarts_total");
  return [...samples.values()].reduce((a, b) => a + b, 0);
}
