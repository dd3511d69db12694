import { describe, expect, test } from "vitest";
import type { Membership } from "#protocol/membership.ts";
import type { Rank } from "../../control-plane/fleet/fleet.ts";
import { FIRST_WAIT_MS, planGroup, REDUCE_MS, SETTLE_MS, withLook } from "../../control-plane/groups/group-plan.ts";

const rank = (number: number, changes: Partial<Rank> = {}): Rank =>
  ({ rank: number, ranks: 3, epoch: 1, state: "forming", membership: null, lostGroup: null, ...changes }) as Rank;
const group = (epoch: number, ...members: number[]): Membership => ({ epoch, members, mapVersion: 0 });
const inGroup = (number: number, membership: Membership): Rank => rank(number, { state: "ready", membership });

/** The numbers of the ranks that are to form a group after `waitedMs` without a change; null: nothing is to be done. */
function formed(ranks: readonly Rank[], waitedMs: number, leastRanks = 1): readonly number[] | null {
  const history = withLook(undefined, ranks, 1_000);
  const move = planGroup(ranks, withLook(history, ranks, 1_000 + waitedMs), { leastRanks }, 1_000 + waitedMs);
  return move.kind === "form" ? move.ranks.map((one) => one.rank) : null;
}

describe("a first group", () => {
  test("is formed of all ranks as soon as all are there", () => {
    const all = [rank(2), rank(0), rank(1)];
    expect(formed(all, SETTLE_MS - 1)).toBeNull();
    expect(formed(all, SETTLE_MS)).toEqual([0, 1, 2]);
  });

  test("waits long for a rank that still loads, then goes on without it", () => {
    const some = [rank(0), rank(1), rank(2, { state: "loading" })];
    expect(formed(some, FIRST_WAIT_MS - 1)).toBeNull();
    expect(formed(some, FIRST_WAIT_MS)).toEqual([0, 1]);
    expect(formed(some, FIRST_WAIT_MS, 3)).toBeNull();
  });
});

describe("a group", () => {
  const whole = group(5, 0, 1, 2);
  test("that is whole is left alone", () => {
    expect(
      formed(
        [0, 1, 2].map((number) => inGroup(number, whole)),
        1e9,
      ),
    ).toBeNull();
  });

  test("that lost a rank goes on with the others soon, if they are enough", () => {
    const left = [rank(0, { lostGroup: { epoch: 5, guilty: 2 } }), rank(1, { membership: whole })];
    expect(formed(left, REDUCE_MS - 1)).toBeNull();
    expect(formed(left, REDUCE_MS)).toEqual([0, 1]);
    expect(formed(left, 1e9, 3)).toBeNull();
    expect(formed([...left, rank(2, { state: "lost" })], REDUCE_MS)).toEqual([0, 1]);
  });

  test("that works at reduced size takes a replacement in at once", () => {
    const reduced = group(6, 0, 1);
    const ranks = [inGroup(0, reduced), inGroup(1, reduced), rank(2, { epoch: 9 })];
    expect(formed(ranks.slice(0, 2), 1e9)).toBeNull();
    expect(formed(ranks, SETTLE_MS)).toEqual([0, 1, 2]);
  });

  test("whose ranks are in different groups is formed anew", () => {
    expect(formed([inGroup(0, whole), inGroup(1, whole), inGroup(2, group(6, 0, 1, 2))], SETTLE_MS)).toEqual([0, 1, 2]);
  });

  test("is not formed while a rank of the worker drains", () => {
    expect(formed([rank(0), rank(1), rank(2, { state: "draining" })], 1e9)).toBeNull();
    expect(formed([inGroup(0, whole), inGroup(1, whole), rank(2, { state: "draining" })], 1e9)).toBeNull();
  });

  test("that was asked for is not asked for again at once, unless something has changed since", () => {
    const ranks = [rank(0), rank(1), rank(2)];
    const asked = { ...withLook(undefined, ranks, 0), notBeforeMs: 10_000 };
    const rules = { leastRanks: 1 };
    expect(planGroup(ranks, withLook(asked, ranks, 9_999), rules, 9_999).kind).toBe("none");
    expect(planGroup(ranks, withLook(asked, ranks, 10_000), rules, 10_000).kind).toBe("form");
    const changed = [rank(0), rank(1, { lostGroup: { epoch: 7, guilty: null } }), rank(2)];
    const looked = withLook(asked, changed, 5_000);
    expect(planGroup(changed, looked, rules, 5_000 + SETTLE_MS).kind).toBe("form");
  });
});
