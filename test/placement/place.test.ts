import { describe, expect, test } from "vitest";
import type { ModelName, RankId } from "#protocol/ids.ts";
import { type FleetSnapshot, SKEWED_BEATS, withPair } from "../../control-plane/fleet/fleet.ts";
import type { PrefixLookup } from "../../control-plane/fleet/prefix-index.ts";
import { choosePrefill, type PlacementQuery, place, splitOrLocal } from "../../control-plane/placement/place.ts";
import { fakeRandom } from "../support/fake-clock.ts";
import { beatOf, cardOf, fleetOf, loadOf, NANO, rankId } from "../support/fleet-of.ts";

/** Blocks each rank holds of every prompt. */
const cachedOn = (blocks: Readonly<Record<string, number>>): PrefixLookup => ({
  cachedBlocks: (rank, hashes) => Math.min(hashes.length, blocks[rank] ?? 0),
});
const nothing = cachedOn({});

function query(changes: Partial<PlacementQuery> = {}): PlacementQuery {
  const promptTokens = changes.promptTokens ?? 640;
  return {
    model: NANO,
    promptTokens,
    wholeTokens: promptTokens + 64,
    hashes: () => Array.from({ length: Math.floor((promptTokens - 1) / 64) }, (_, i) => `hash-${i}`),
    avoid: new Set(),
    localTokens: 0,
    ...changes,
  };
}

/** Where a request goes, in words. */
function where(fleet: FleetSnapshot, changes: Partial<PlacementQuery> = {}, prefixes = nothing, nowMs = 0): string {
  const placement = place(fleet, prefixes, query(changes), nowMs);
  switch (placement.kind) {
    case "split":
      return `${placement.prefill.workerId} ${placement.decode.workerId}`;
    case "local":
      return `local ${placement.decode.workerId}`;
    case "wait":
      return `wait ${placement.missing}`;
    case "impossible":
      return "impossible";
  }
}

const avoiding = (...names: string[]) => ({ avoid: new Set<RankId>(names.map(rankId)) });

describe("which ranks may be taken", () => {
  test("only ready ones whose clock can be trusted", () => {
    const states = [
      { state: "loading" },
      { state: "draining" },
      { state: "lost" },
      { skewedBeats: SKEWED_BEATS },
      { coolUntilMs: 1 },
    ] as const;
    for (const out of states) {
      expect(where(fleetOf([beatOf("p1"), beatOf("d1"), beatOf("d2")], { d1: out }))).toBe("p1 d2");
      expect(where(fleetOf([beatOf("p1"), beatOf("d1")], { d1: out }))).toBe("wait decode");
      expect(where(fleetOf([beatOf("p1"), beatOf("p2"), beatOf("d1")], { p1: out }))).toBe("p2 d1");
      expect(where(fleetOf([beatOf("p1"), beatOf("d1")], { p1: out }))).toBe("wait prefill");
    }
  });

  test("only those of the model, and only pairs that understand each other's KV", () => {
    const other = { model: cardOf({ name: "other" as ModelName }) };
    expect(where(fleetOf([beatOf("p1"), beatOf("d1", other), beatOf("d2")]))).toBe("p1 d2");
    expect(where(fleetOf([beatOf("p1", other), beatOf("d1")]))).toBe("wait prefill");
    for (const model of [cardOf({ modelHash: "hash-2" }), cardOf({ layout: "fp32-4x64" })]) {
      expect(where(fleetOf([beatOf("p1"), beatOf("d1", { model })]))).toBe("wait prefill");
      expect(where(fleetOf([beatOf("p1"), beatOf("p2", { model }), beatOf("d1", { model })]))).toBe("p2 d1");
      // The emptier decode rank has no partner: the other pair is taken.
      const d2 = beatOf("d2", { load: loadOf({ requests: 6 }) });
      expect(where(fleetOf([beatOf("p1"), beatOf("d1", { model }), d2]))).toBe("p1 d2");
    }
  });

  test("only those with a slot and with blocks, counting what was given to them since they spoke", () => {
    const full = { load: loadOf({ requests: 8 }) };
    expect(where(fleetOf([beatOf("p1"), beatOf("d1", full)]))).toBe("wait decode");
    expect(where(fleetOf([beatOf("p1"), beatOf("d1")], { d1: { ownRequests: 8 } }))).toBe("wait decode");
    const few = { load: loadOf({ blocksAvailable: 10 }) };
    expect(where(fleetOf([beatOf("p1"), beatOf("d1", few)]))).toBe("wait decode");
    expect(where(fleetOf([beatOf("p1"), beatOf("d1", few)]), {}, cachedOn({ "d1-r0": 9 }))).toBe("p1 d1");
    expect(where(fleetOf([beatOf("p1", few), beatOf("d1")]))).toBe("p1 d1");
    expect(where(fleetOf([beatOf("p1", few), beatOf("d1")]), { promptTokens: 641 })).toBe("wait prefill");
  });

  test("a prefill rank that could not begin within a second gets nothing more", () => {
    const behind = (tokens: number) => [
      beatOf("p1", { load: loadOf({ pendingPrefillTokens: tokens, prefillTokensPerSecond: 500 }) }),
      beatOf("d1"),
    ];
    expect(where(fleetOf(behind(500)))).toBe("p1 d1");
    expect(where(fleetOf(behind(501)))).toBe("wait prefill");
    expect(where(fleetOf(behind(0), { p1: { ownPrefillTokens: 501 } }))).toBe("wait prefill");
  });

  test("a way from P to D that failed is not taken until its time is over; both serve others meanwhile", () => {
    const pair = (fleet: FleetSnapshot) => withPair(fleet, rankId("p1"), rankId("d1"), 1_000);
    const small = pair(fleetOf([beatOf("p1"), beatOf("d1")]));
    expect(where(small, {}, nothing, 999)).toBe("wait prefill");
    expect(where(small, {}, nothing, 1_000)).toBe("p1 d1");
    const larger = pair(fleetOf([beatOf("p1"), beatOf("p2"), beatOf("d1"), beatOf("d2")]));
    expect(["p2 d1", "p1 d2"]).toContain(where(larger, {}, nothing, 999));
  });
});

describe("which rank is best", () => {
  test("the least loaded, and the one that would be done first with the prompt", () => {
    const load = (requests: number) => ({ load: loadOf({ requests }) });
    expect(where(fleetOf([beatOf("p1"), beatOf("d1", load(5)), beatOf("d2", load(1))]))).toBe("p1 d2");
    const pending = (tokens: number) => ({ load: loadOf({ pendingPrefillTokens: tokens }) });
    expect(where(fleetOf([beatOf("p1", pending(800)), beatOf("p2", pending(100)), beatOf("d1")]))).toBe("p2 d1");
  });

  test("one that holds the prompt already, unless it is far busier", () => {
    const pool = fleetOf([beatOf("p1"), beatOf("p2"), beatOf("d1"), beatOf("d2")]);
    expect(where(pool, {}, cachedOn({ "p2-r0": 8, "d2-r0": 8 }))).toBe("p2 d2");
    const crowded = fleetOf([beatOf("p1"), beatOf("d1"), beatOf("d2")], { d2: { ownRequests: 7 } });
    expect(where(crowded, {}, cachedOn({ "d2-r0": 1 }))).toBe("p1 d1");
  });

  test("ranks that failed the request only when there is no other", () => {
    const pool = fleetOf([beatOf("p1"), beatOf("p2"), beatOf("d1"), beatOf("d2")]);
    expect(where(pool, avoiding("p1", "d1"))).toBe("p2 d2");
    expect(where(pool, avoiding("p1", "p2", "d1", "d2"))).toMatch(/^p\d d\d$/);
    const busy = fleetOf([beatOf("p1"), beatOf("d1"), beatOf("d2")], { d2: { ownRequests: 7 } });
    expect(where(busy, avoiding("d1"))).toBe("p1 d2");
  });
});

describe("local or split", () => {
  test("zero never computes on the decode rank; else what is missing there decides", () => {
    const base = query({ promptTokens: 64 });
    expect(splitOrLocal(query({ promptTokens: 65 }), 64)).toBe("split");
    expect(splitOrLocal({ ...base, localTokens: 64 }, 0)).toBe("local");
    expect(splitOrLocal({ ...base, localTokens: 63 }, 0)).toBe("split");
  });

  test("a long prompt of which little is missing stays on the decode rank, and needs no prefill rank", () => {
    const alone = fleetOf([beatOf("d1")]);
    expect(where(alone, { localTokens: 100 })).toBe("wait prefill");
    expect(where(alone, { localTokens: 100 }, cachedOn({ "d1-r0": 9 }))).toBe("local d1");
  });
});

describe("what can never be placed", () => {
  test("is told at once when every pool that is known is too small, and waits when one is not known yet", () => {
    const small = { load: loadOf({ blocksTotal: 8, blocksAvailable: 8 }) };
    expect(where(fleetOf([beatOf("p1"), beatOf("d1", small)]))).toBe("impossible");
    expect(where(fleetOf([beatOf("p1", small), beatOf("d1")]))).toBe("impossible");
    expect(where(fleetOf([beatOf("p1"), beatOf("d1", small), beatOf("d2")]))).toBe("p1 d2");
    expect(where(fleetOf([]))).toBe("wait decode");
    const loading = beatOf("d2", { state: "loading", load: loadOf({ blocksTotal: 0, blocksAvailable: 0 }) });
    expect(where(fleetOf([beatOf("p1"), beatOf("d1", small), loading]))).toBe("wait decode");
  });

  test("an answer longer than the context needs no more than the context", () => {
    expect(where(fleetOf([beatOf("p1"), beatOf("d1")]), { wholeTokens: 1_000_000 })).toBe("p1 d1");
  });
});

describe("properties", () => {
  /** 300 fleets of random ranks and a random request. */
  const cases = Array.from({ length: 300 }, (_, seed) => {
    const random = fakeRandom(seed);
    const pick = (below: number) => Math.floor(random.uniform() * below);
    const beats = Array.from({ length: pick(8) }, (_, i) =>
      beatOf(`${pick(2) === 0 ? "p" : "d"}${i}`, {
        state: (["ready", "ready", "ready", "loading", "draining"] as const)[pick(5)]!,
        model: cardOf({ modelHash: `hash-${pick(2)}` }),
        load: loadOf({
          requests: pick(9),
          pendingPrefillTokens: pick(2000),
          prefillTokensPerSecond: pick(3) * 1000,
          blocksAvailable: pick(65),
        }),
      }),
    );
    const request = query({ promptTokens: 1 + pick(3000), localTokens: pick(3) * 500 });
    const prefixes = cachedOn(Object.fromEntries(beats.map((beat) => [beat.rankId, pick(20)])));
    return { fleet: fleetOf(beats), prefixes, request };
  });

  test("equal inputs give equal placements, and the snapshot is left as it was", () => {
    for (const { fleet, prefixes, request } of cases) {
      const before = structuredClone(fleet);
      expect(place(fleet, prefixes, request, 5)).toEqual(place(fleet, prefixes, request, 5));
      expect(fleet).toEqual(before);
    }
  });

  test("the order in which ranks were heard of does not matter", () => {
    for (const { fleet, prefixes, request } of cases) {
      const turned = { ...fleet, ranks: new Map([...fleet.ranks].reverse()) };
      expect(place(turned, prefixes, request, 5)).toEqual(place(fleet, prefixes, request, 5));
    }
  });

  test("whoever is placed is ready, has a slot, and the two understand each other", () => {
    let placed = 0;
    for (const { fleet, prefixes, request } of cases) {
      const placement = place(fleet, prefixes, request, 5);
      if (placement.kind !== "split" && placement.kind !== "local") continue;
      placed++;
      const { decode } = placement;
      const prefill = placement.kind === "split" ? placement.prefill : null;
      expect(decode.role).toBe("decode");
      for (const rank of prefill === null ? [decode] : [prefill, decode]) {
        expect(rank.state).toBe("ready");
        expect(rank.load.requests).toBeLessThan(rank.load.maxRequests);
        expect(rank.model.modelHash).toBe(decode.model.modelHash);
      }
      if (prefill !== null) expect(choosePrefill(fleet, prefixes, request, decode, 5)).toBe(prefill);
    }
    expect(placed).toBeGreaterThan(50);
  });
});
