import { describe, expect, test } from "vitest";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import { GatewayId, type ModelName } from "#protocol/ids.ts";
import { DemandExchange, sumOf } from "../../control-plane/scaling/demand-exchange.ts";
import type { Demand } from "../../control-plane/scaling/planner.ts";
import { FakeClock, fakeRandom } from "../support/fake-clock.ts";

const NANO = "nano" as ModelName;
const quiet: Demand = { waiting: 0, oldestWaitMs: 0, missing: null, running: 0, idleMs: null };

/** Two control planes on one bus. */
function pair() {
  const clock = new FakeClock();
  const network = new MemoryNetwork(clock, fakeRandom(1));
  const demands: Record<string, Demand> = { a: quiet, b: quiet };
  const looks: Record<string, number> = { a: 0, b: 0 };
  const exchange = (name: string): DemandExchange => {
    const made = new DemandExchange({
      ...{ clock, models: [NANO], bus: network.connect("control-plane") },
      gatewayId: GatewayId.parse(`gw-${name}`),
      own: () => demands[name]!,
      onWaiting: () => looks[name]!++,
    });
    made.start();
    return made;
  };
  return { clock, demands, looks, a: exchange("a"), b: exchange("b") };
}

describe("what control planes tell each other", () => {
  test("requests that wait at one are known to the other at once, not at the next beat", async () => {
    const { clock, demands, looks, a, b } = pair();
    await clock.advance(300);
    demands.b = { ...quiet, waiting: 3, oldestWaitMs: 40, missing: "decode", running: 3, idleMs: 0 };
    b.tellSoon();
    await clock.advance(50);
    expect(looks.a).toBe(1);
    expect(a.demand(NANO)).toMatchObject({ waiting: 3, missing: "decode", running: 3 });
    expect(a.waitingElsewhere(NANO)).toBe(3);
    expect(b.waitingElsewhere(NANO)).toBe(0);
  });

  test("one that falls silent counts for 15 seconds more, and is then forgotten", async () => {
    const { clock, demands, a, b } = pair();
    demands.b = { ...quiet, running: 2, idleMs: 0 };
    await clock.advance(1_100);
    b.stop();
    await clock.advance(13_000);
    expect(a.demand(NANO).running).toBe(2);
    await clock.advance(4_000);
    expect(a.demand(NANO).running).toBe(0);
  });

  test("nothing is called idle for longer than somebody has looked", async () => {
    const { clock, a } = pair();
    await clock.advance(5_000);
    expect(a.demand(NANO).idleMs).toBe(5_000);
  });
});

describe("several demands as one", () => {
  test("adds up, and takes the first in line for what is missing", () => {
    const first: Demand = { waiting: 1, oldestWaitMs: 900, missing: "prefill", running: 4, idleMs: 0 };
    const later: Demand = { waiting: 2, oldestWaitMs: 100, missing: "decode", running: 2, idleMs: 7 };
    expect(sumOf([quiet, later, first], 60_000)).toEqual({
      ...{ waiting: 3, oldestWaitMs: 900, missing: "prefill", running: 6, idleMs: 0 },
    });
    expect(sumOf([quiet, { ...quiet, idleMs: 30 }], 60_000)).toEqual({ ...quiet, idleMs: 30 });
    expect(sumOf([quiet], 60_000).idleMs).toBe(60_000);
  });
});
