import { describe, expect, test } from "vitest";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import { NO_TRAFFIC, type ServedShare, type Traffic } from "#protocol/demand.ts";
import { GatewayId, type ModelName } from "#protocol/ids.ts";
import { DemandExchange, sumOf } from "../../control-plane/scaling/demand-exchange.ts";
import type { Demand } from "../../control-plane/scaling/planner.ts";
import { FakeClock, fakeRandom } from "../support/fake-clock.ts";

const NANO = "nano" as ModelName;
const quiet: Demand = { waiting: 0, oldestWaitMs: 0, missing: null, running: 0, idleMs: null, waitingTokens: 0 };

/** Two control planes on one bus. */
function pair() {
  const clock = new FakeClock();
  const network = new MemoryNetwork(clock, fakeRandom(1));
  const demands: Record<string, Demand> = { a: quiet, b: quiet };
  const traffic: Record<string, Traffic> = { a: NO_TRAFFIC, b: NO_TRAFFIC };
  const looks: Record<string, number> = { a: 0, b: 0 };
  const served: Record<string, ServedShare[]> = { a: [], b: [] };
  const heard: Record<string, ServedShare[]> = { a: [], b: [] };
  const exchange = (name: string): DemandExchange => {
    const made = new DemandExchange({
      ...{ clock, models: [NANO], bus: network.connect("control-plane") },
      gatewayId: GatewayId.parse(`gw-${name}`),
      own: () => ({ ...demands[name]!, traffic: traffic[name]!, served: served[name]! }),
      onWaiting: () => looks[name]!++,
      onServed: (_model, share) => heard[name]!.push(share),
    });
    made.start();
    return made;
  };
  return { clock, demands, traffic, looks, served, heard, a: exchange("a"), b: exchange("b") };
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

  test("what one serves a tenant is told to the other once", async () => {
    const { clock, served, heard, a } = pair();
    served.b = [{ tenant: "early", served: 500 }];
    await clock.advance(1_100);
    served.b = [
      { tenant: "early", served: 530 },
      { tenant: "late", served: 7 },
    ];
    await clock.advance(5_000);
    served.b = [{ tenant: "late", served: 9 }];
    await clock.advance(1_000);
    expect(heard.a).toEqual([
      { tenant: "early", served: 500 },
      { tenant: "early", served: 30 },
      { tenant: "late", served: 7 },
      { tenant: "late", served: 2 },
    ]);
    expect(heard.b).toEqual([]);
    a.stop();
  });

  test("nothing is called idle for longer than somebody has looked", async () => {
    const { clock, a } = pair();
    await clock.advance(5_000);
    expect(a.demand(NANO).idleMs).toBe(5_000);
  });
});

describe("what came", () => {
  test("is told by control plane, and is unknown once one of them was not heard for three seconds", async () => {
    const { clock, traffic, a, b } = pair();
    traffic.b = { ...NO_TRAFFIC, arrived: 5, promptTokens: 500 };
    await clock.advance(1_100);
    expect([...a.traffic(NANO)!.values()].map(({ arrived }) => arrived).sort()).toEqual([0, 5]);
    b.stop();
    await clock.advance(4_000);
    expect(a.traffic(NANO)).toBeNull();
    // Its requests have nobody any more, and a is alone.
    await clock.advance(15_000);
    expect(a.traffic(NANO)?.size).toBe(1);
  });
});

describe("several demands as one", () => {
  test("adds up, and takes the first in line for what is missing", () => {
    const first: Demand = {
      waiting: 1,
      oldestWaitMs: 900,
      missing: "prefill",
      running: 4,
      idleMs: 0,
      waitingTokens: 7,
    };
    const later: Demand = { waiting: 2, oldestWaitMs: 100, missing: "decode", running: 2, idleMs: 7, waitingTokens: 5 };
    expect(sumOf([quiet, later, first], 60_000)).toEqual({
      ...{ waiting: 3, oldestWaitMs: 900, missing: "prefill", running: 6, idleMs: 0, waitingTokens: 12 },
    });
    expect(sumOf([quiet, { ...quiet, idleMs: 30 }], 60_000)).toEqual({ ...quiet, idleMs: 30 });
    expect(sumOf([quiet], 60_000).idleMs).toBe(60_000);
  });
});
