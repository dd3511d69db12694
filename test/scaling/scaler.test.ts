import { beforeEach, describe, expect, test } from "vitest";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import { GatewayId, type ModelName, type RankId, rankIdOf, type WorkerId } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import { silentLogger } from "#service/logger.ts";
import { createMetrics } from "#service/metrics.ts";
import { EMPTY_FLEET, type FleetSnapshot, type Rank } from "../../control-plane/fleet/fleet.ts";
import { DecisionLog } from "../../control-plane/scaling/decision-log.ts";
import { PauseMemory } from "../../control-plane/scaling/pause-memory.ts";
import type { Demand } from "../../control-plane/scaling/planner.ts";
import type { ScaleTarget, TargetWorker } from "../../control-plane/scaling/scale-target.ts";
import { Scaler } from "../../control-plane/scaling/scaler.ts";
import { SILENT_MS, START_MS } from "../../control-plane/scaling/worker-health.ts";
import { FakeClock, fakeRandom } from "../support/fake-clock.ts";

const NANO = "nano" as ModelName;

/** Workers that begin and end at once. */
class FakeTarget implements ScaleTarget {
  readonly list: TargetWorker[] = [];
  readonly stopped: WorkerId[] = [];
  /** What was asked for last; null: the target does not know yet what there is. */
  known: Partial<Record<Role, number>> | null = {};
  #started = 0;

  scale(model: ModelName, role: Role, count: number): void {
    this.known = { ...this.known, [role]: count };
    const mine = this.list.filter((worker) => worker.role === role && worker.model === model);
    for (const surplus of mine.slice(count)) this.list.splice(this.list.indexOf(surplus), 1);
    for (let missing = count - mine.length; missing > 0; missing--) {
      const workerId = `${role}-${++this.#started}` as WorkerId;
      const ranks = [{ rankId: rankIdOf(workerId, 0), instance: "1" }];
      this.list.push({ workerId, model, role, ranks, stopping: false, runs: true });
    }
  }

  workers(): readonly TargetWorker[] {
    return this.list;
  }

  async stop(workerId: WorkerId): Promise<void> {
    this.stopped.push(workerId);
    const at = this.list.findIndex((worker) => worker.workerId === workerId);
    if (at !== -1) this.list.splice(at, 1);
  }

  replace(workerId: WorkerId): void {
    void this.stop(workerId);
  }

  lastFailure(): null {
    return null;
  }

  wanted(_model: ModelName, role: Role): number | null {
    return this.known === null ? null : (this.known[role] ?? 0);
  }

  hold(): void {}

  async close(): Promise<void> {}
}

let clock: FakeClock;
let target: FakeTarget;
let demand: Demand;
let fleet: FleetSnapshot;
let scaler: Scaler;
let metrics: ReturnType<typeof createMetrics>;
let network: MemoryNetwork;

const quiet: Demand = { waiting: 0, oldestWaitMs: 0, missing: null, running: 0, idleMs: null, waitingTokens: 0 };
const ids = () => target.list.map((worker) => worker.workerId).sort();

/** What the fleet knows: each worker of the list in the state given by role or id. */
function seen(states: Readonly<Record<string, Rank["state"]>>): void {
  const ranks = new Map<RankId, Rank>();
  for (const [workerId, state] of Object.entries(states)) {
    const rankId = `${workerId}-r0` as RankId;
    ranks.set(rankId, { rankId, workerId: workerId as WorkerId, state } as Rank);
  }
  fleet = { ...EMPTY_FLEET, ranks };
}

beforeEach(() => {
  clock = new FakeClock();
  network = new MemoryNetwork(clock, fakeRandom(1));
  target = new FakeTarget();
  demand = quiet;
  fleet = EMPTY_FLEET;
  metrics = createMetrics({ processMetrics: false });
  scaler = newScaler(target);
  scaler.start();
});

function newScaler(its: FakeTarget, bus = network.connect("control-plane")): Scaler {
  return new Scaler({
    ...{ clock, target: its, metrics },
    logger: silentLogger,
    models: [NANO],
    rules: {
      ...{ prefill: { min: 0, max: 2 }, decode: { min: 0, max: 2 }, ttftGoalMs: 1_000, tpotGoalMs: 0 },
      keepAlive: { fixedMs: 10_000, learned: true },
    },
    demand: () => demand,
    traffic: () => null,
    usualStartMs: () => 1_000,
    log: new DecisionLog({ bus, clock, gatewayId: GatewayId.parse("gw-1") }),
    memory: new PauseMemory(bus),
    snapshot: () => fleet,
  });
}

describe("through zero and back", () => {
  test("both roles are started at the first request, before the next tick, and stopped after the idle time", async () => {
    expect(ids()).toEqual([]);
    demand = { ...quiet, waiting: 1, running: 1, missing: "decode", idleMs: 0 };
    scaler.look();
    expect(ids()).toEqual(["decode-1", "prefill-1"].map((id) => expect.stringContaining(id.split("-")[0]!)));
    seen(Object.fromEntries(ids().map((id) => [id, "ready" as const])));
    demand = { ...quiet, idleMs: 9_000 };
    await clock.advance(200);
    expect(ids()).toHaveLength(2);
    demand = { ...quiet, idleMs: 10_000 };
    await clock.advance(200);
    expect(ids()).toEqual([]);
    expect(await metrics.text()).toContain("margay_cold_starts_total 2");
  });

  test("a client that leaves while workers load does not have them killed", async () => {
    demand = { ...quiet, waiting: 1, running: 1, missing: "decode", idleMs: 0 };
    await clock.advance(200);
    const started = ids();
    seen(Object.fromEntries(started.map((id) => [id, "loading" as const])));
    demand = { ...quiet, idleMs: 60_000 };
    await clock.advance(5_000);
    expect(ids()).toEqual(started);
    seen(Object.fromEntries(started.map((id) => [id, "ready" as const])));
    await clock.advance(200);
    expect(ids()).toEqual([]);
  });
});

describe("a request that waits through a cold start", () => {
  const waits = { ...quiet, waiting: 1, running: 1, missing: "decode", idleMs: 0 } as const;
  const states = (state: Rank["state"]) => seen(Object.fromEntries(ids().map((id) => [id, state])));

  test("is not answered by a second worker the moment the first is ready, but by one a second later", async () => {
    demand = waits;
    await clock.advance(200);
    states("loading");
    demand = { ...waits, oldestWaitMs: 20_000 };
    await clock.advance(20_000);
    expect(ids()).toHaveLength(2);
    states("ready");
    await clock.advance(900);
    expect(ids()).toHaveLength(2);
    await clock.advance(400);
    expect(ids().filter((id) => id.startsWith("decode"))).toHaveLength(2);
    expect(ids().filter((id) => id.startsWith("prefill"))).toHaveLength(1);
  });
});

describe("workers that are of no use", () => {
  beforeEach(async () => {
    demand = { ...quiet, running: 1, idleMs: 0 };
    await clock.advance(200);
  });

  test("one that never becomes ready is replaced after its time, and counted", async () => {
    const before = ids();
    const [first, second] = before as [WorkerId, WorkerId];
    seen({ [first]: "loading", [second]: "ready" });
    await clock.advance(START_MS - 1_000);
    expect(target.stopped).toEqual([]);
    await clock.advance(2_000);
    expect(target.stopped).toEqual([first]);
    expect(ids()).toHaveLength(2);
    expect(ids()).not.toContain(first);
    expect(await metrics.text()).toMatch(/margay_worker_restarts_total\{role="(prefill|decode)"\} 1/);
  });

  test("one that was ready and fell silent gets a minute to come back", async () => {
    const [first, second] = ids() as [WorkerId, WorkerId];
    seen({ [first]: "ready", [second]: "ready" });
    await clock.advance(1_000);
    seen({ [first]: "lost", [second]: "ready" });
    await clock.advance(SILENT_MS - 2_000);
    seen({ [first]: "ready", [second]: "ready" });
    await clock.advance(1_000);
    expect(target.stopped).toEqual([]);
    seen({ [second]: "ready" });
    await clock.advance(SILENT_MS + 1_000);
    expect(target.stopped).toEqual([first]);
  });

  test("one that drains at the operator's wish is left in peace", async () => {
    const [first, second] = ids() as [WorkerId, WorkerId];
    seen({ [first]: "draining", [second]: "ready" });
    await clock.advance(START_MS + SILENT_MS);
    expect(target.stopped).toEqual([]);
  });
});

describe("what was learned of pauses", () => {
  /** Requests with pauses of 30 s between them. */
  const traffic = async (pauses: number): Promise<void> => {
    for (let i = 0; i < pauses; i++) {
      demand = { ...quiet, running: 1, idleMs: 0 };
      await clock.advance(1_000);
      for (let second = 1; second <= 30; second++) {
        demand = { ...quiet, idleMs: 1_000 * second };
        await clock.advance(1_000);
      }
    }
  };
  /** Whether workers are still there after so long without a request. */
  const keptAfter = async (its: FakeTarget, leader: Scaler, idleMs: number): Promise<boolean> => {
    demand = { ...quiet, running: 1, idleMs: 0 };
    leader.look();
    seen(Object.fromEntries(its.list.map(({ workerId }) => [workerId, "ready" as const])));
    demand = { ...quiet, idleMs };
    leader.look();
    return its.list.length > 0;
  };

  test("is known to the leader that follows one that ended, and to one that follows a killed one but for the last minute", async () => {
    expect(await keptAfter(target, scaler, 25_000)).toBe(false);
    await traffic(20);
    scaler.stop();
    await clock.advance(100);
    const second = new FakeTarget();
    const next = newScaler(second);
    next.start();
    await clock.advance(100);
    expect(await keptAfter(second, next, 25_000)).toBe(true);
    await clock.advance(200_000);
    // Not stopped: nothing is written at its end.
    const third = new FakeTarget();
    const heir = newScaler(third);
    heir.start();
    await clock.advance(100);
    expect(await keptAfter(third, heir, 25_000)).toBe(true);
    heir.stop();
    next.stop();
  });

  test("is asked for again while the bus is away, and what was learned meanwhile is added to it", async () => {
    await traffic(8);
    scaler.stop();
    await clock.advance(100);
    const bus = network.connect("control-plane");
    network.disconnect(bus);
    const later = newScaler(target, bus);
    later.start();
    await traffic(4);
    expect(await keptAfter(target, later, 25_000)).toBe(false);
    network.reconnect(bus);
    await traffic(2);
    await clock.advance(61_000);
    expect(await keptAfter(target, later, 25_000)).toBe(true);
    later.stop();
  });
});
