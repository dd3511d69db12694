import { describe, expect, test } from "vitest";
import type { RankId, WorkerId } from "#protocol/ids.ts";
import { compatible } from "#protocol/model-card.ts";
import type { Load, Role } from "#protocol/worker.ts";
import { EMPTY_FLEET, type FleetSnapshot, pairKey, type Rank, SKEWED_BEATS } from "../../control-plane/fleet/fleet.ts";
import { type PlacementQuery, place } from "../../control-plane/placement/place.ts";
import { fakeRandom } from "../support/fake-clock.ts";
import { cardOf, loadOf, NANO } from "../support/fleet-of.ts";

function rank(role: Role, name: string, changes: Partial<Omit<Rank, "load">> & { load?: Partial<Load> } = {}): Rank {
  return {
    rankId: `${name}-r0` as RankId,
    workerId: name as WorkerId,
    rank: 0,
    ranks: 1,
    role,
    state: "ready",
    epoch: 1,
    model: cardOf(),
    kvEndpoint: role === "decode" ? { host: "127.0.0.1", port: 7000, hostKey: "host" } : null,
    exchange: null,
    experts: 0,
    membership: null,
    lostGroup: null,
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
  return { ...EMPTY_FLEET, ranks: new Map(ranks.map((one) => [one.rankId, one])), pairs };
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
describe("over random fleets", () => {
  test("only ranks that can take the request are chosen, the same ones every time, and some are when some can", () => {
    let placed = 0;
    for (let seed = 1; seed <= 2_000; seed++) {
      const random = fakeRandom(seed);
      const below = (n: number) => Math.floor(random.uniform() * n);
      const pick = <T>(...options: readonly T[]) => options[below(options.length)]!;
      const ranks = Array.from({ length: below(9) }, (_, i) =>
        rank(i % 2 === 0 ? "decode" : "prefill", `r${i}`, {
          state: pick("ready", "ready", "ready", "loading", "forming", "draining", "lost"),
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
