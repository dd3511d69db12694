import { describe, expect, test } from "vitest";
import type { Bus } from "#protocol/bus/bus.ts";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import { RequestId } from "#protocol/ids.ts";
import type { LedgerEntry } from "#protocol/tenancy.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { silentLogger } from "#service/logger.ts";
import { createMetrics } from "#service/metrics.ts";
import { daysOfMonth, nextMonth, timeOf } from "../../control-plane/tenancy/calendar.ts";
import { costOf } from "../../control-plane/tenancy/cost.ts";
import { Ledger } from "../../control-plane/tenancy/ledger.ts";
import { FakeClock, fakeRandom } from "../support/fake-clock.ts";
import { NatsServer } from "../support/nats-server.ts";

const NOON = Date.UTC(2026, 10, 24, 12);
const metrics = createMetrics({ processMetrics: false });

function entry(id: string, fields: Partial<LedgerEntry> = {}): LedgerEntry {
  return {
    ...{ kind: "ledger-entry", requestId: RequestId.parse(id), tenant: "acme", model: "nano", arrivedMs: NOON },
    ...{ outcome: "ok", inputTokens: 100, cachedTokens: 64, outputTokens: 20, reasoningTokens: 5 },
    ...{ prefillGpuMicros: 1_500, decodeGpuMicros: 20_000, costPicos: "70000000", ...fields },
  };
}

/** Control planes on one bus, under virtual time. */
class World {
  readonly clock = new FakeClock(NOON);
  readonly network = new MemoryNetwork(this.clock, fakeRandom(1));

  bus(): Bus {
    return this.network.connect("control-plane");
  }

  ledger(bus = this.bus(), clock = this.clock): Ledger {
    return new Ledger({ bus, clock, logger: silentLogger, metrics });
  }
}

describe("the ledger", () => {
  test("adds up entries by tenant, model and day, failed ones apart", async () => {
    const world = new World();
    const ledger = world.ledger();
    ledger.record(entry("a"));
    ledger.record(entry("b", { outcome: "cancelled", outputTokens: 7, costPicos: "1" }));
    ledger.record(entry("c", { tenant: "other" }));
    ledger.record(entry("d", { arrivedMs: NOON - 24 * 3600 * 1000 }));
    await world.clock.settle();
    await ledger.written();
    const { rows } = await ledger.usage("2026-11-24");
    expect(rows).toEqual([
      {
        ...{ tenant: "acme", model: "nano", requests: 2, failedRequests: 1, inputTokens: 200, cachedTokens: 128 },
        ...{ outputTokens: 27, reasoningTokens: 10, prefillGpuMicros: 3_000, decodeGpuMicros: 40_000 },
        costPicos: "70000001",
      },
      expect.objectContaining({ tenant: "other", requests: 1 }),
    ]);
    expect((await ledger.usage("2026-11-23")).rows).toHaveLength(1);
    expect((await ledger.usage("2026-11-22")).rows).toEqual([]);
  });

  test("has one entry for a request, whoever writes it and however often", async () => {
    const world = new World();
    const [one, two] = [world.ledger(), world.ledger()];
    for (const ledger of [one, two, one]) ledger.record(entry("same"));
    await world.clock.settle();
    for (const ledger of [one, two]) expect((await ledger.usage("2026-11-24")).rows[0]?.requests).toBe(1);
  });

  test("goes on after a restart from the sum that was kept, and several control planes agree to the last entry", async () => {
    const world = new World();
    const [one, two] = [world.ledger(), world.ledger()];
    for (const ledger of [one, two]) ledger.start();
    for (let i = 0; i < 200; i++) {
      (i % 2 ? one : two).record(entry(`r${i}`));
      if (i % 20 === 0) await world.clock.advance(7_000);
    }
    await world.clock.advance(70_000);
    await one.stop(1_000);
    const fresh = world.ledger();
    for (const ledger of [one, two, fresh]) {
      const { rows } = await ledger.usage("2026-11-24");
      expect(rows[0]).toMatchObject({ requests: 200, outputTokens: 4_000, costPicos: String(200 * 70_000_000) });
    }
    expect(await fresh.spent("acme")).toBe(200n * 70_000_000n);
  });

  test("waits for a bus that is away, and loses nothing", async () => {
    const world = new World();
    const bus = world.bus();
    const ledger = world.ledger(bus);
    ledger.start();
    world.network.disconnect(bus);
    for (let i = 0; i < 100; i++) ledger.record(entry(`r${i}`));
    await world.clock.advance(60_000);
    world.network.reconnect(bus);
    await world.clock.advance(2_000);
    await ledger.written();
    expect((await world.ledger().usage("2026-11-24")).rows[0]?.requests).toBe(100);
  });

  test("gives up an entry that no journal would take, says so, and goes on", async () => {
    const world = new World();
    const ledger = world.ledger();
    ledger.record(entry("bad", { costPicos: "-1" }));
    ledger.record(entry("good"));
    await world.clock.settle();
    await ledger.written();
    expect((await ledger.usage("2026-11-24")).rows[0]).toMatchObject({ requests: 1, costPicos: "70000000" });
    expect(await metrics.text()).toMatch(/margay_ledger_lost_total 1\b/);
  });

  test("counts as spent what was recorded here at once, what others recorded within seconds, and no other month's", async () => {
    const world = new World();
    const [one, two] = [world.ledger(), world.ledger()];
    for (const ledger of [one, two]) ledger.start();
    await Promise.all([one.load(), two.load()]);
    one.record(entry("a", { costPicos: "500" }));
    one.record(entry("b", { costPicos: "1", arrivedMs: Date.UTC(2026, 9, 31) }));
    expect([await one.spent("acme"), await two.spent("acme")]).toEqual([500n, 0n]);
    await world.clock.advance(3_000);
    expect([await one.spent("acme"), await two.spent("acme")]).toEqual([500n, 500n]);
    const december = world.ledger(world.bus(), new FakeClock(Date.UTC(2026, 11, 1)));
    expect(await december.spent("acme")).toBe(0n);
  });
});

test("a cost is exact: uncached, cached and generated tokens and GPU time at their prices; our failures cost nothing", () => {
  const price = { input: 700_000, cachedInput: 70_000, output: 2_800_000, prefillGpuHour: 3_600_000, decodeGpuHour: 0 };
  const { kind: _kind, costPicos: _cost, ...facts } = entry("a");
  expect(costOf(facts, price)).toBe(36n * 700_000n + 64n * 70_000n + 20n * 2_800_000n + 1_500n * 1_000n);
  expect(costOf({ ...facts, outcome: "cancelled" }, price)).toBe(costOf(facts, price));
  expect(costOf({ ...facts, outcome: "worker_lost" }, price)).toBe(0n);
  expect(costOf(facts, null)).toBe(0n);
  const large = { ...facts, inputTokens: 2 ** 50, cachedTokens: 0, outputTokens: 1, prefillGpuMicros: 0 };
  expect(costOf(large, price)).toBe(2n ** 50n * 700_000n + 2_800_000n);
});

test("days and months are those of UTC", () => {
  expect(timeOf("2026-11-24")).toBe(Date.UTC(2026, 10, 24));
  expect(["2026-06-31", "2026-1-1", "x", "2026-13-01"].map(timeOf)).toEqual([null, null, null, null]);
  expect(daysOfMonth(Date.UTC(2026, 10, 3, 23, 59))).toEqual(["2026-11-01", "2026-11-02", "2026-11-03"]);
  expect(nextMonth(Date.UTC(2026, 11, 31, 23))).toBe(Date.UTC(2027, 0, 1));
});

test("on a real NATS server: entries written twice and by two control planes count once, also after a SIGKILL of the server", async () => {
  await using server = await NatsServer.start();
  const open = async () => {
    const bus = await server.connect("control-plane");
    return { bus, ledger: new Ledger({ bus, clock: systemClock, logger: silentLogger, metrics }) };
  };
  const [one, two] = await Promise.all([open(), open()]);
  const nowMs = systemClock.now();
  const day = new Date(nowMs).toISOString().slice(0, 10);
  const prefix = systemRandom.hex(4);
  for (let i = 0; i < 150; i++) {
    one.ledger.record(entry(`${prefix}-${i}`, { arrivedMs: nowMs }));
    if (i % 3 === 0) two.ledger.record(entry(`${prefix}-${i}`, { arrivedMs: nowMs }));
    if (i === 70) {
      await server.down("SIGKILL");
      await server.up();
    }
  }
  await Promise.all([one.ledger.written(), two.ledger.written()]);
  expect((await one.ledger.usage(day)).rows[0]).toMatchObject({ requests: 150, outputTokens: 3_000 });
  await one.ledger.stop(5_000);
  const { bus, ledger } = await open();
  expect((await ledger.usage(day)).rows[0]).toMatchObject({ requests: 150, costPicos: String(150 * 70_000_000) });
  for (const each of [one.bus, two.bus, bus]) await each.close(1_000);
}, 60_000);
