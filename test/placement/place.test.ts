import { describe, expect, test } from "vitest";
import type { RankId, WorkerId } from "#protocol/ids.ts";
import { compatible } from "#protocol/model-card.ts";
import type { Load, Role } from "#protocol/worker.ts";
import { EMPTY_FLEET, type FleetSnapshot, pairKey, type Rank, SKEWED_BEATS } from "../../control-plane/fleet/fleet.ts";
import { type PlacementQuery, place } from "../../control-plane/placement/place.ts";
import { fakeRandom } from "../support/fake-clock.ts";
import { cardOf, loadOf, NANO } from "../support/scripted-rank.ts";

function rank(role: Role, name: string, changes: Partial<Omit<Rank, "load">> & { load?: Partial<Load> } = {}): Rank {
  return {
    rankId: `${name}-r0` as RankId,
    workerId: name as WorkerId,
    role,
    state: "ready",
    epoch: 1,
    model: cardOf(),
    kvEndpoint: role === "decode" ? { host: "127.0.0.1", port: 7000, hostKey: "host" } : null,
    kvSeq: -1,
    healthUrl: "http://127.0.0.1:1",
    pid: 1,
    lastBeatMs: 0,
    coolUntilMs: 0,
    ownRequests: 0,
    ownPrefillTokens: 0,
    skewedBeats: 0,
    ...changes,
    load: loadOf(changes.load),
  };
}

function fleet(ranks: readonly Rank[], pairs: ReadonlyMap<string, number> = new Map()): FleetSnapshot {
  return { ranks: new Map(ranks.map((one) => [one.rankId, one])), pairs };
}

function query(changes: Partial<PlacementQuery> = {}): PlacementQuery {
  return {
    model: NANO,
    hashes: () => ["h0", "h1", "h2", "h3"],
    promptTokens: 300,
    wholeTokens: 400,
    avoid: new Set(),
    localTokens: 0,
    ...changes,
  };
}

const prefixes = (blocks: Readonly<Record<string, number>> = {}) => ({
  cachedBlocks: (rankId: RankId, hashes: readonly string[]) => Math.min(hashes.length, blocks[rankId] ?? 0),
});
const names = (snapshot: FleetSnapshot, asked = query(), cached = prefixes(), nowMs = 1_000) => {
  const placement = place(snapshot, cached, asked, nowMs);
  if (placement.kind === "split") return [placement.prefill.workerId, placement.decode.workerId];
  return placement.kind === "local" ? [placement.decode.workerId] : placement.kind;
};

describe("a request is placed", () => {
  test("on the less loaded ranks, whoever counted the load", () => {
    const p = [rank("prefill", "p1", { load: { pendingPrefillTokens: 500 } }), rank("prefill", "p2")];
    const d = [rank("decode", "d1", { load: { requests: 3 } }), rank("decode", "d2", { ownRequests: 2 })];
    expect(names(fleet([...p, ...d]))).toEqual(["p2", "d2"]);
    const busier = d.map((one) => ({ ...one, ownRequests: one.workerId === "d2" ? 5 : 0 }));
    expect(names(fleet([...p, ...busier]))).toEqual(["p2", "d1"]);
  });

  test("where its prefix is cached, unless that rank is much busier", () => {
    const ranks = [rank("prefill", "p1"), rank("prefill", "p2"), rank("decode", "d1"), rank("decode", "d2")];
    expect(names(fleet(ranks), query(), prefixes({ "p2-r0": 4, "d2-r0": 2 }))).toEqual(["p2", "d2"]);
    const busy = rank("decode", "d2", { load: { requests: 7 } });
    expect(names(fleet([...ranks.slice(0, 3), busy]), query(), prefixes({ "d2-r0": 2 }))).toEqual(["p1", "d1"]);
  });

  test("with the decode rank alone when little of the prompt is missing there", () => {
    const ranks = [rank("prefill", "p1"), rank("decode", "d1")];
    expect(names(fleet(ranks), query({ localTokens: 299 }))).toEqual(["p1", "d1"]);
    expect(names(fleet(ranks), query({ localTokens: 300 }))).toEqual(["d1"]);
    expect(names(fleet(ranks), query({ localTokens: 44 }), prefixes({ "d1-r0": 4 }))).toEqual(["d1"]);
    expect(names(fleet(ranks.slice(1)), query({ localTokens: 300 }))).toEqual(["d1"]);
  });

  test("on ranks that failed it only when there is no other", () => {
    const ranks = [rank("prefill", "p1"), rank("prefill", "p2"), rank("decode", "d1"), rank("decode", "d2")];
    const avoid = new Set(["p1-r0", "d1-r0"] as RankId[]);
    expect(names(fleet(ranks), query({ avoid }))).toEqual(["p2", "d2"]);
    expect(names(fleet([ranks[0]!, ranks[2]!]), query({ avoid }))).toEqual(["p1", "d1"]);
  });

  test("by another way while the way from P to D cools, and by it again afterwards", () => {
    const ranks = [rank("prefill", "p1"), rank("decode", "d1"), rank("decode", "d2", { load: { requests: 1 } })];
    const pairs = new Map([[pairKey(ranks[0]!.rankId, ranks[1]!.rankId), 2_000]]);
    expect(names(fleet(ranks, pairs), query(), prefixes(), 1_999)).toEqual(["p1", "d2"]);
    expect(names(fleet(ranks, pairs), query(), prefixes(), 2_000)).toEqual(["p1", "d1"]);
    expect(names(fleet(ranks.slice(0, 2), pairs), query(), prefixes(), 1_999)).toBe("wait");
  });
});

describe("a request waits", () => {
  const p = rank("prefill", "p1");
  const d = rank("decode", "d1");
  test("for the role that is missing", () => {
    expect(place(EMPTY_FLEET, prefixes(), query(), 0)).toEqual({ kind: "wait", missing: "decode" });
    expect(place(fleet([d]), prefixes(), query(), 0)).toEqual({ kind: "wait", missing: "prefill" });
    expect(place(fleet([p]), prefixes(), query(), 0)).toEqual({ kind: "wait", missing: "decode" });
  });

  test.each([
    ["a rank with more to compute than it could start in a second", { load: { pendingPrefillTokens: 1_001 } }],
    ["a rank given more than that since its heartbeat", { ownPrefillTokens: 1_001 }],
    ["a rank that is cooling", { coolUntilMs: 1_001 }],
    ["a rank whose clock is off", { skewedBeats: SKEWED_BEATS }],
    ["a rank that drains", { state: "draining" as const }],
    ["a rank of another layout", { model: cardOf({ layout: "other" }) }],
    ["a rank with a full pool", { load: { blocksAvailable: 4 } }],
  ])("rather than go to %s", (_, changes) => {
    expect(names(fleet([rank("prefill", "p1", changes), d]))).toBe("wait");
  });
});

describe("a request is impossible", () => {
  test("when it is larger than every decode pool, or its prompt than every prefill pool", () => {
    const p = rank("prefill", "p1");
    const small = rank("decode", "d1", { load: { blocksTotal: 6, blocksAvailable: 6 } });
    expect(place(fleet([p, small]), prefixes(), query(), 0)).toEqual({ kind: "impossible", blocks: 7, blocksTotal: 6 });
    expect(names(fleet([p, small, rank("decode", "d2", { state: "lost" })]))).toBe("wait");
    const tiny = rank("prefill", "p1", { load: { blocksTotal: 4, blocksAvailable: 4 } });
    expect(place(fleet([tiny, rank("decode", "d2")]), prefixes(), query(), 0)).toMatchObject({
      blocks: 5,
      blocksTotal: 4,
    });
  });

  test("but not because of tokens that the model's context ends anyway", () => {
    const ranks = [rank("prefill", "p1"), rank("decode", "d1")];
    expect(names(fleet(ranks), query({ wholeTokens: 1_000_000 }))).toEqual(["p1", "d1"]);
  });
});

describe("over random fleets", () => {
  test("only ranks that can take the request are chosen, the same ones every time, and some are when some can", () => {
    let placed = 0;
    for (let seed = 1; seed <= 2_000; seed++) {
      const random = fakeRandom(seed);
      const below = (n: number) => Math.floor(random.uniform() * n);
      const pick = <T>(...options: readonly T[]) => options[below(options.length)]!;
      const ranks = Array.from({ length: below(9) }, (_, i) =>
        rank(i % 2 === 0 ? "decode" : "prefill", `r${i}`, {
          state: pick("ready", "ready", "ready", "loading", "draining", "lost"),
          coolUntilMs: pick(0, 0, 999, 1_000, 1_001),
          skewedBeats: pick(0, 0, 1, SKEWED_BEATS),
          ownRequests: below(5),
          ownPrefillTokens: pick(0, 0, 900, 5_000),
          model: cardOf({ layout: pick("a", "a", "b") }),
          load: { requests: below(5), maxRequests: 4, blocksAvailable: pick(3, 7, 20, 64) },
        }),
      );
      const pairs = new Map(
        ranks.map((one, i) => [pairKey(ranks[0]!.rankId, one.rankId), i % 2 === 0 ? 1_001 : 1_000]),
      );
      const cached = prefixes(Object.fromEntries(ranks.map((one) => [one.rankId, below(4)])));
      const asked = query({
        localTokens: pick(0, 128, 400),
        avoid: new Set(ranks.filter(() => below(4) === 0).map((one) => one.rankId)),
      });
      const snapshot = fleet(ranks, pairs);
      const frozen = JSON.stringify([...snapshot.ranks]);
      const placement = place(snapshot, cached, asked, 1_000);
      expect(place(fleet(ranks.toReversed(), pairs), cached, asked, 1_000)).toEqual(placement);
      expect(JSON.stringify([...snapshot.ranks])).toBe(frozen);

      const open = (one: Rank, blocks: number) =>
        one.state === "ready" &&
        one.coolUntilMs <= 1_000 &&
        one.skewedBeats < SKEWED_BEATS &&
        Math.max(one.load.requests, one.ownRequests) < 4 &&
        one.load.blocksAvailable >= blocks;
      const held = (one: Rank) => cached.cachedBlocks(one.rankId, asked.hashes(""));
      const decodes = ranks.filter((one) => one.role === "decode" && open(one, 7 - held(one)));
      const prefills = ranks.filter((one) => one.role === "prefill" && open(one, 5) && one.ownPrefillTokens <= 1_000);
      const isLocal = (one: Rank) => 300 - held(one) * 64 <= asked.localTokens;
      const pairable = (one: Rank, decode: Rank) =>
        compatible(one.model, decode.model) && (pairs.get(pairKey(one.rankId, decode.rankId)) ?? 0) <= 1_000;
      const possible = decodes.some((decode) => isLocal(decode) || prefills.some((one) => pairable(one, decode)));
      expect(placement.kind === "split" || placement.kind === "local").toBe(possible);
      if (placement.kind !== "split" && placement.kind !== "local") continue;
      placed++;
      expect(decodes).toContain(placement.decode);
      expect(isLocal(placement.decode)).toBe(placement.kind === "local");
      if (placement.kind === "split") {
        expect(prefills).toContain(placement.prefill);
        expect(pairable(placement.prefill, placement.decode)).toBe(true);
      }
    }
    expect(placed).toBeGreaterThan(200);
  });
});
