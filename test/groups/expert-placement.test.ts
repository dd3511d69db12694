import { describe, expect, test } from "vitest";
import { judgeExpertMap } from "#protocol/expert-map.ts";
import {
  balancedOwners,
  contiguousOwners,
  imbalanceOf,
  type Owners,
  planRebalance,
} from "../../control-plane/groups/expert-placement.ts";
import { fakeRandom } from "../support/fake-clock.ts";

/** Loads of a router whose favourites follow Zipf's law; contiguous by rank of popularity, the worst there is. */
function zipf(experts: number, exponent: number, shuffleSeed: number | null = null): number[] {
  const loads = Array.from({ length: experts }, (_, expert) => 1e6 / (expert + 1) ** exponent);
  if (shuffleSeed === null) return loads;
  const random = fakeRandom(shuffleSeed);
  return loads
    .map((load) => ({ load, key: random.uniform() }))
    .sort((a, b) => a.key - b.key)
    .map(({ load }) => load);
}

const hosts = (...counts: number[]) =>
  counts.flatMap((count, host) => Array.from({ length: count }, () => `host${host}`));
const isMap = (owners: Owners, experts: number, ranks: number) =>
  judgeExpertMap({ version: 0, owners: owners.map((holders) => [...holders]) }, experts, ranks);

describe("the first map", () => {
  test.each([
    [12, 1],
    [12, 5],
    [512, 7],
    [512, 64],
    [3, 3],
  ])("gives %i experts to %i ranks, in order, uneven by one at most", (experts, ranks) => {
    const owners = contiguousOwners(experts, ranks);
    expect(isMap(owners, experts, ranks)).toBeNull();
    const flat = owners.map(([rank]) => rank!);
    expect(flat).toEqual([...flat].sort((a, b) => a - b));
    const counts = Array.from({ length: ranks }, (_, rank) => flat.filter((owner) => owner === rank).length);
    expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1);
  });
});

describe("a skewed router", () => {
  test.each([
    ["512 experts, 8 ranks of one host", 512, hosts(8), 4],
    ["512 experts, 16 ranks of two hosts", 512, hosts(8, 8), 4],
    ["512 experts, 12 ranks of uneven hosts", 512, hosts(8, 4), 6],
    ["256 experts, 32 ranks of four hosts", 256, hosts(8, 8, 8, 8), 3],
    ["64 experts, 6 ranks", 64, hosts(6), 3],
  ])("is evened out from 3 and more to 1.3 and less: %s", (_, experts, where, sparePerRank) => {
    const loads = zipf(experts, 1.1);
    const current = contiguousOwners(experts, where.length);
    const plan = planRebalance({ loads, hosts: where, sparePerRank, current })!;
    expect(plan.before).toBeGreaterThanOrEqual(3);
    expect(plan.after).toBeLessThanOrEqual(1.3);
    expect(imbalanceOf(plan.owners, loads, where.length)).toBe(plan.after);
    expect(isMap(plan.owners, experts, where.length)).toBeNull();
  });

  test("is evened out over hosts as well as ranks", () => {
    const loads = zipf(256, 1.1);
    const where = hosts(4, 4);
    const owners = balancedOwners({ loads, hosts: where, sparePerRank: 8, current: contiguousOwners(256, 8) });
    const perHost = [0, 0];
    for (const [expert, holders] of owners.entries()) {
      for (const rank of holders) perHost[rank < 4 ? 0 : 1]! += loads[expert]! / holders.length;
    }
    expect(Math.max(...perHost) / Math.min(...perHost)).toBeLessThan(1.05);
  });
});

describe("any loads", () => {
  test("give a map that is whole, within every rank's room, and the same every time", () => {
    for (let seed = 1; seed <= 300; seed++) {
      const random = fakeRandom(seed);
      const below = (n: number) => Math.floor(random.uniform() * n);
      const ranks = 1 + below(9);
      const experts = ranks + below(60);
      const sparePerRank = below(5);
      const where = Array.from({ length: ranks }, () => `host${below(3)}`);
      const loads = zipf(experts, random.uniform() * 2, seed).map((load) => (below(5) === 0 ? 0 : load));
      const query = { loads, hosts: where, sparePerRank, current: contiguousOwners(experts, ranks) };
      const owners = balancedOwners(query);
      expect(isMap(owners, experts, ranks)).toBeNull();
      expect(balancedOwners(query)).toEqual(owners);
      const held = Array.from({ length: ranks }, (_, rank) => owners.filter((h) => h.includes(rank)).length);
      expect(Math.max(...held)).toBeLessThanOrEqual(Math.ceil(experts / ranks) + sparePerRank);
    }
  });

  test("that are even, absent or hardly better spread otherwise move nothing", () => {
    const query = { hosts: hosts(4), sparePerRank: 2, current: contiguousOwners(16, 4) };
    expect(planRebalance({ ...query, loads: Array.from({ length: 16 }, () => 5) })).toBeNull();
    expect(planRebalance({ ...query, loads: Array.from({ length: 16 }, () => 0) })).toBeNull();
    // One expert alone is hot, and its replicas are everywhere already.
    const current = contiguousOwners(4, 2).map(() => [0, 1]);
    expect(planRebalance({ hosts: hosts(2), sparePerRank: 2, current, loads: [100, 1, 1, 1] })).toBeNull();
  });

  test("that were evened out stay so: the next look moves nothing", () => {
    const loads = zipf(128, 1.2, 7);
    const query = { loads, hosts: hosts(8), sparePerRank: 3 };
    const plan = planRebalance({ ...query, current: contiguousOwners(128, 8) })!;
    expect(planRebalance({ ...query, current: plan.owners })).toBeNull();
    const wobbling = loads.map((load, expert) => load * (1 + 0.1 * Math.sin(expert)));
    expect(planRebalance({ ...query, loads: wobbling, current: plan.owners })).toBeNull();
  });
});
