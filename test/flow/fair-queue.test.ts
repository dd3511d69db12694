import { describe, expect, test } from "vitest";
import {
  FairQueue,
  HEAD_START_MS,
  IDLE_URGENCY,
  type Queued,
  type Share,
} from "../../control-plane/flow/fair-queue.ts";
import { fakeRandom } from "../support/fake-clock.ts";
import { FlowWorld, type Ride } from "../support/flow-world.ts";

const of = (tenant: string, weight = 1, urgency = 0): Share => ({ tenant, weight, urgency });
const asking = (share: Share, arrivedMs: number, promptTokens = 10, again = false): Queued => ({
  ...{ share, arrivedMs, promptTokens, again },
});

/** Jain's index of fairness: 1 when all are equal, 1/n when one has everything. */
function jain(served: readonly number[]): number {
  const sum = served.reduce((a, b) => a + b, 0);
  return sum ** 2 / (served.length * served.reduce((a, b) => a + b * b, 0));
}

interface Asker {
  readonly share: Share;
  readonly outstanding: number;
  readonly mostTokens: number;
  /** The control planes it asks by turns; only the first where nothing is said. */
  readonly at?: readonly number[];
}

/**
 * A server of four places, each tenant keeping `outstanding` requests under way at control planes that race for a free place.
 * They tell each other every `tellMs` what they served. Returns the tokens served to each over the time from which all of
 * them had waited once.
 */
function serve(seed: number, tenants: readonly Asker[], controlPlanes = 1, tellMs = 1_000): number[] {
  const random = fakeRandom(seed);
  const queues = Array.from({ length: controlPlanes }, () => new FairQueue<Queued & { readonly output: number }>());
  const told = queues.map(() => new Map<string, number>());
  const served = tenants.map(() => 0);
  const turns = tenants.map(() => 0);
  const between = (most: number) => 1 + Math.floor(random.uniform() * most);
  const ask = (index: number, nowMs: number) => {
    const { share, mostTokens, at = [0] } = tenants[index]!;
    const queue = queues[at[turns[index]!++ % at.length]!]!;
    queue.push({ ...asking(share, nowMs, between(mostTokens)), output: between(mostTokens) });
  };
  /** Whoever is quickest of those that have somebody to seat. */
  const racing = (nowMs: number) => {
    const ready = queues.filter((queue) => queue.next(nowMs) !== null);
    return ready[Math.floor(random.uniform() * ready.length)];
  };
  const tell = () => {
    for (const [index, queue] of queues.entries()) {
      for (const { tenant, served: all } of queue.servedHere) {
        const share = { tenant, served: all - (told[index]!.get(tenant) ?? 0) };
        told[index]!.set(tenant, all);
        for (const other of queues) if (other !== queue) other.chargeElsewhere(share);
      }
    }
  };
  for (const [index, { outstanding }] of tenants.entries()) for (let i = 0; i < outstanding; i++) ask(index, 0);
  const running: { readonly index: number; readonly queue: (typeof queues)[number]; left: number }[] = [];
  for (let nowMs = 1; nowMs < 20_000; nowMs++) {
    for (let queue = racing(nowMs); running.length < 4 && queue !== undefined; queue = racing(nowMs)) {
      const next = queue.next(nowMs)!;
      queue.take(next);
      const { share, output, promptTokens } = next;
      const index = tenants.findIndex((tenant) => tenant.share === share);
      running.push({ index, queue, left: output });
      served[index]! += promptTokens;
    }
    for (const one of [...running]) {
      one.queue.charge(tenants[one.index]!.share, 1);
      served[one.index]!++;
      if (--one.left > 0) continue;
      running.splice(running.indexOf(one), 1);
      ask(one.index, nowMs);
    }
    if (nowMs % tellMs === 0) tell();
  }
  return served;
}

describe("whose turn it is", () => {
  test("two equal tenants of which one asks ten times as much are served alike: Jain's index is at least 0.95", () => {
    for (let seed = 1; seed <= 20; seed++) {
      const served = serve(seed, [
        { share: of("heavy"), outstanding: 60, mostTokens: 200 },
        { share: of("light"), outstanding: 6, mostTokens: 200 },
      ]);
      expect(jain(served)).toBeGreaterThan(0.99);
    }
  });

  test("nor does it matter that one of them asks at two control planes and the other at one", () => {
    for (let seed = 1; seed <= 10; seed++) {
      const tenants = [
        { share: of("heavy"), outstanding: 60, mostTokens: 200, at: [0, 1] },
        { share: of("light"), outstanding: 12, mostTokens: 200, at: [1] },
      ];
      expect(jain(serve(seed, tenants, 2))).toBeGreaterThan(0.95);
      // Control planes that do not hear each other give it half of one of them.
      expect(jain(serve(seed, tenants, 2, 1_000_000))).toBeLessThan(0.9);
    }
  });

  test("nor does it matter whose requests are longer, or how many tenants there are", () => {
    for (let seed = 1; seed <= 10; seed++) {
      const served = serve(seed, [
        { share: of("long"), outstanding: 40, mostTokens: 800 },
        { share: of("short"), outstanding: 10, mostTokens: 40 },
        { share: of("middle"), outstanding: 10, mostTokens: 200 },
      ]);
      expect(jain(served)).toBeGreaterThan(0.95);
    }
  });

  test("weights divide what is served", () => {
    const served = serve(3, [
      { share: of("three", 3), outstanding: 30, mostTokens: 100 },
      { share: of("one", 1), outstanding: 30, mostTokens: 100 },
    ]);
    expect(served[0]! / served[1]!).toBeGreaterThan(2.7);
    expect(served[0]! / served[1]!).toBeLessThan(3.3);
  });

  test("a tenant that was away has no credit, and one that had the system to itself no debt", () => {
    const queue = new FairQueue<Queued>();
    queue.push(asking(of("early"), 0));
    queue.take(queue.next(0)!);
    queue.charge(of("early"), 1_000_000);
    queue.push(asking(of("early"), 1));
    queue.push(asking(of("late"), 2));
    queue.push(asking(of("late"), 3));
    const order: string[] = [];
    for (let next = queue.next(5); next !== null; next = queue.next(5)) {
      order.push(next.share.tenant);
      queue.take(next);
    }
    expect(order).toEqual(["early", "late", "late"]);
  });

  test("urgent requests go first, yet none waits for ever: a class has a head start, no more", () => {
    const queue = new FairQueue<Queued>();
    const low = asking(of("a", 1, -1), 0);
    const normal = asking(of("a", 1, 0), 5_000);
    const high = asking(of("b", 1, 1), 9_000);
    for (const one of [low, normal, high]) queue.push(one);
    expect(queue.next(9_000)).toBe(high);
    queue.take(high);
    expect(queue.next(9_000)).toBe(normal);
    const later = asking(of("b", 1, 1), 5_001 + HEAD_START_MS);
    queue.push(later);
    expect(queue.next(20_000)).toBe(normal);
    queue.take(normal);
    expect(queue.next(20_000)).toBe(later);
    queue.take(later);
    queue.push(asking(of("a", 1, 0), 1 + HEAD_START_MS));
    expect(queue.next(20_000)).toBe(low);
  });

  test("what nobody waits for goes when nothing else does, however long it waited and whatever it lost", () => {
    const queue = new FairQueue<Queued>();
    const idle = asking(of("a", 1, IDLE_URGENCY), 0);
    const lost = asking(of("b", 1, IDLE_URGENCY), 1, 10, true);
    const low = asking(of("a", 1, -1), 1_000 * HEAD_START_MS);
    for (const one of [idle, lost, low]) queue.push(one);
    const order: Queued[] = [];
    for (let next = queue.next(2_000 * HEAD_START_MS); next !== null; next = queue.next(2_000 * HEAD_START_MS)) {
      order.push(next);
      queue.take(next);
    }
    expect(order[0]).toBe(low);
    expect(new Set(order.slice(1))).toEqual(new Set([idle, lost]));
  });

  test("what nobody waits for makes room for everybody, and takes nobody's", () => {
    const queue = new FairQueue<Queued>();
    const idle = asking(of("a", 1, IDLE_URGENCY), 0);
    queue.push(asking(of("b"), 0));
    for (let i = 0; i < 9; i++) queue.push(asking(of("c"), i));
    expect(queue.crowdedOut(of("a", 1, IDLE_URGENCY))).toBeNull();
    queue.push(idle);
    expect(queue.crowdedOut(of("c"))).toBe(idle);
  });

  test("of one tenant and class the oldest; who lost its place goes before everybody", () => {
    const queue = new FairQueue<Queued>();
    const all = [asking(of("a"), 3), asking(of("a"), 1), asking(of("a"), 2), asking(of("a", 1, -1), 9, 10, true)];
    for (const one of all) queue.push(one);
    const order: Queued[] = [];
    for (let next = queue.next(10); next !== null; next = queue.next(10)) {
      order.push(next);
      queue.remove(next);
    }
    expect(order).toEqual([all[3], all[1], all[2], all[0]]);
    expect(queue.size).toBe(0);
  });
});

describe("a full waiting room", () => {
  const settleAll = async (world: FlowWorld, rides: readonly Ride[]) => {
    for (const ride of rides) await world.end(ride);
  };

  test("turns away the tenant that filled it, its last request first, and tells it when to come back", async () => {
    const world = new FlowWorld({ mostWaiting: 10, waitMs: 8_000 });
    const heavy = Array.from({ length: 10 }, () => world.send({ share: of("heavy") }));
    await world.clock.advance(0);
    const light = Array.from({ length: 6 }, () => world.send({ share: of("light") }));
    await world.clock.advance(0);
    expect(light.map((ride) => ride.error?.code ?? null)).toEqual([null, null, null, null, null, "queue_full"]);
    expect(heavy.map((ride) => ride.error?.code ?? null)).toEqual([
      ...Array(5).fill(null),
      ...Array(5).fill("queue_full"),
    ]);
    expect(heavy[9]!.error).toMatchObject({ status: 429, retryAfterMs: 2_000 });
    await world.fleetOf(1, 1);
    await settleAll(world, [...heavy, ...light]);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("a light tenant's request does not stand behind a heavy one's", async () => {
    const world = new FlowWorld();
    const heavy = Array.from({ length: 30 }, () => world.send({ share: of("heavy") }));
    await world.clock.advance(1);
    const light = world.send({ share: of("light") });
    world.rank("prefill", "p1", { load: { maxRequests: 1 } });
    world.rank("decode", "d1", { load: { maxRequests: 1 } });
    await world.end(light);
    expect(heavy.filter((ride) => ride.ends > 0).length).toBeLessThan(3);
    await settleAll(world, heavy);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("through the whole flow, ten times the load gets a tenant no more tokens", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 1);
    d[0]!.load = { ...d[0]!.load, maxRequests: 3 };
    d[0]!.beat();
    const served = { heavy: 0, light: 0 };
    const under: { readonly tenant: "heavy" | "light"; ride: Ride }[] = [];
    const send = (tenant: "heavy" | "light") => world.send({ share: of(tenant), prompt: 64, maxNewTokens: 30 });
    for (let i = 0; i < 40; i++) under.push({ tenant: "heavy", ride: send("heavy") });
    for (let i = 0; i < 4; i++) under.push({ tenant: "light", ride: send("light") });
    for (let step = 0; step < 400; step++) {
      await world.clock.advance(20);
      for (const one of under) {
        if (one.ride.ends === 0) continue;
        served[one.tenant] += 64 + one.ride.tokens.length;
        one.ride = send(one.tenant);
      }
    }
    expect(served.light).toBeGreaterThan(500);
    expect(jain([served.heavy, served.light])).toBeGreaterThan(0.95);
    for (const { ride } of under) ride.abort.abort();
    expect(await world.heldAfterwards()).toEqual([]);
  });
});
