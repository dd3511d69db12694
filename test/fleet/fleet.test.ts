import { describe, expect, test } from "vitest";
import { HEARTBEAT_TIMEOUT_MS, MAX_CLOCK_SKEW_MS } from "#protocol/worker.ts";
import {
  FORGET_MS,
  PAIR_COOL_MS,
  type Rank,
  ranksOf,
  withCooling,
  withGoodbye,
  withHeartbeat,
  withOwn,
  withPair,
  withSilenceExcused,
  withTime,
} from "../../control-plane/fleet/fleet.ts";
import { beatOf, fleetOf, NANO, rankId } from "../support/fleet-of.ts";

const D1 = rankId("d1");
const P1 = rankId("p1");
const one = fleetOf([beatOf("d1")]);
const rankOf = (fleet: typeof one, id = D1): Rank => fleet.ranks.get(id)!;

describe("silence", () => {
  test("makes a rank lost after the promised time, and forgotten much later", () => {
    expect(rankOf(withTime(one, HEARTBEAT_TIMEOUT_MS)).state).toBe("ready");
    const lost = withTime(one, HEARTBEAT_TIMEOUT_MS + 1);
    expect(rankOf(lost).state).toBe("lost");
    expect(rankOf(withTime(lost, FORGET_MS)).state).toBe("lost");
    expect(withTime(lost, FORGET_MS + 1).ranks.size).toBe(0);
  });

  test("ends with the next heartbeat of the same epoch", () => {
    const lost = withTime(one, 10_000);
    expect(rankOf(withHeartbeat(lost, beatOf("d1", { seq: 1 }), 10_001, 0)).state).toBe("ready");
  });

  test("does not count while nobody could be heard; who was lost before stays lost", () => {
    const two = withHeartbeat(one, beatOf("d2"), 9_000, 0);
    const excused = withSilenceExcused(withTime(two, 10_000), 60_000);
    expect(rankOf(withTime(excused, 61_000), rankId("d2")).state).toBe("ready");
    expect(rankOf(excused).state).toBe("lost");
  });

  test("changes nothing of a fleet in which nobody is silent", () => {
    expect(withTime(one, 1_000)).toBe(one);
  });
});

describe("epochs", () => {
  test("a heartbeat or goodbye of an earlier epoch changes nothing", () => {
    const second = withHeartbeat(one, beatOf("d1", { epoch: 2 }), 1_000, 0);
    expect(withHeartbeat(second, beatOf("d1", { epoch: 1, seq: 99 }), 2_000, 0)).toBe(second);
    expect(withGoodbye(second, { kind: "goodbye", rankId: D1, epoch: 1 })).toBe(second);
    expect(withGoodbye(second, { kind: "goodbye", rankId: D1, epoch: 2 }).ranks.size).toBe(0);
  });

  test("a new epoch starts with a clean sheet", () => {
    const used = withCooling(withOwn(one, D1, 1, 3, 500), D1, 99_000);
    expect(rankOf(withHeartbeat(used, beatOf("d1", { seq: 1 }), 0, 0))).toMatchObject({
      ownRequests: 3,
      ownPrefillTokens: 500,
      coolUntilMs: 99_000,
    });
    expect(rankOf(withHeartbeat(used, beatOf("d1", { epoch: 2 }), 0, 0))).toMatchObject({
      ownRequests: 0,
      ownPrefillTokens: 0,
      coolUntilMs: 0,
    });
  });

  test("a request that ends after its rank was restarted takes nothing from the new epoch", () => {
    const reborn = withOwn(withHeartbeat(withOwn(one, D1, 1, 1, 0), beatOf("d1", { epoch: 2 }), 0, 0), D1, 2, 1, 0);
    expect(rankOf(withOwn(reborn, D1, 1, -1, 0)).ownRequests).toBe(1);
  });
});

describe("what is noted", () => {
  test("own requests never fall below zero", () => {
    expect(rankOf(withOwn(one, D1, 1, -5, -100))).toMatchObject({ ownRequests: 0, ownPrefillTokens: 0 });
  });

  test("a shorter cooling does not shorten a longer one", () => {
    expect(rankOf(withCooling(withCooling(one, D1, 500), D1, 100)).coolUntilMs).toBe(500);
  });

  test("a failed way is remembered for a while, cleared by a success, and not kept for ever", () => {
    const failed = withPair(one, P1, D1, 1_000);
    expect(failed.pairs.size).toBe(1);
    expect(withPair(failed, P1, D1, null).pairs.size).toBe(0);
    expect(withPair(one, P1, D1, null)).toBe(one);
    const heard = withSilenceExcused(failed, 1_000 + PAIR_COOL_MS);
    expect(withTime(heard, 1_001 + PAIR_COOL_MS).pairs.size).toBe(0);
  });

  test("one late heartbeat is no wrong clock, several in a row are", () => {
    const skewed = (fleet: typeof one, seq: number, clockMs: number) =>
      withHeartbeat(fleet, beatOf("d1", { seq, clockMs }), 0, 0);
    const off = MAX_CLOCK_SKEW_MS + 1;
    const twice = skewed(skewed(one, 1, off), 2, -off);
    expect(rankOf(twice).skewedBeats).toBe(2);
    expect(rankOf(skewed(twice, 3, 0)).skewedBeats).toBe(0);
  });

  test("ranks are found by model and role", () => {
    const fleet = fleetOf([beatOf("d1"), beatOf("p1"), beatOf("d2")]);
    expect(ranksOf(fleet, NANO, "decode").map((rank) => rank.workerId)).toEqual(["d1", "d2"]);
  });
});
