import { beforeEach, describe, expect, test } from "vitest";
import type { RankId } from "#protocol/ids.ts";
import type { KvEvents, KvSnapshot } from "#protocol/kv.ts";
import { PrefixIndex } from "../../control-plane/fleet/prefix-index.ts";
import { fakeRandom } from "../support/fake-clock.ts";

const rankId = "d1-r0" as RankId;
const hash = (name: string): string => name.padEnd(16, ".");
const bytes = (names: readonly string[]) => new Uint8Array(Buffer.from(names.map(hash).join(""), "latin1"));

function event(seq: number, stored: readonly string[], removed: readonly string[] = [], epoch = 1): KvEvents {
  return { kind: "kv-events", rankId, epoch, seq, stored: bytes(stored), removed: bytes(removed) };
}
function snapshot(seq: number, names: readonly string[], epoch = 1): KvSnapshot {
  return { kind: "kv-snapshot", rankId, epoch, seq, hashes: bytes(names) };
}

describe("an index of prefixes", () => {
  let index: PrefixIndex;
  const cached = (names: readonly string[]) => index.cachedBlocks(rankId, names.map(hash));
  beforeEach(() => {
    index = new PrefixIndex();
  });

  test("counts leading blocks only", () => {
    expect(index.follow(event(0, ["a", "b", "d"]))).toBe(true);
    expect([cached(["a", "b", "c", "d"]), cached(["b"]), cached(["c"]), cached([])]).toEqual([2, 1, 0, 0]);
    expect(index.cachedBlocks("other" as RankId, [hash("a")])).toBe(0);
  });

  test("I1: a gap asks for a snapshot, and what came after the gap is obeyed on top of it", () => {
    index.follow(event(0, ["a"]));
    expect(index.follow(event(2, ["c"]))).toBe(false);
    expect(index.follow(event(3, [], ["c"]))).toBe(false);
    expect(index.follow(event(4, ["d"]))).toBe(false);
    expect(cached(["c"])).toBe(0);
    index.restore(snapshot(2, ["a", "b", "c"]));
    expect([cached(["a", "b", "c"]), cached(["d"])]).toEqual([2, 1]);
    expect(index.isCurrent(rankId, 1, 4)).toBe(true);
  });

  test("I1: a replay closes a gap as a snapshot does", () => {
    index.follow(event(0, ["a"]));
    index.follow(event(3, ["d"], ["a"]));
    index.follow(event(4, ["e"]));
    expect(index.lastSeq(rankId, 1)).toBe(0);
    const changes = [event(1, ["b"]), event(2, ["c"], ["b"])].map(({ stored, removed }) => ({ stored, removed }));
    index.replay({ kind: "kv-replay", rankId, epoch: 1, seq: 1, changes });
    expect(["a", "b", "c", "d", "e"].map((name) => cached([name]))).toEqual([0, 0, 1, 1, 1]);
    expect([index.lastSeq(rankId, 1), index.lastSeq(rankId, 2)]).toEqual([4, -1]);
    index.replay({ kind: "kv-replay", rankId, epoch: 1, seq: 1, changes });
    expect([cached(["b"]), index.lastSeq(rankId, 1)]).toEqual([0, 4]);
  });

  test("a rank that tells of no removal fills no memory", () => {
    index = new PrefixIndex(3);
    index.follow(event(0, ["a", "b", "c", "d"]));
    expect(cached(["a", "b", "c", "d"])).toBe(3);
    index.follow(event(1, ["e"], ["a"]));
    expect(cached(["e"])).toBe(1);
    index.restore(snapshot(9, ["1", "2", "3", "4"]));
    expect(cached(["1", "2", "3", "4"])).toBe(3);
  });

  test("a snapshot older than a gap leaves the gap to be noticed", () => {
    index.follow(event(0, ["a"]));
    index.follow(event(5, ["f"]));
    index.restore(snapshot(3, ["a", "b"]));
    expect(index.isCurrent(rankId, 1, 5)).toBe(false);
    expect(index.follow(event(6, ["g"]))).toBe(false);
  });

  test("the first event heard of an epoch is followed only if it is the first there was", () => {
    expect(index.follow(event(3, ["x"]))).toBe(false);
    expect(cached(["x"])).toBe(0);
    expect(index.isCurrent(rankId, 1, -1)).toBe(true);
    expect(index.isCurrent(rankId, 1, 3)).toBe(false);
  });

  test("doubled and late events, late snapshots and earlier epochs change nothing", () => {
    index.follow(event(0, ["a"], [], 2));
    index.follow(event(1, [], ["a"], 2));
    expect(index.follow(event(0, ["a"], [], 2))).toBe(true);
    index.restore(snapshot(0, ["a"], 2));
    index.restore(snapshot(9, ["a"], 1));
    expect(index.follow(event(2, ["a"], [], 1))).toBe(true);
    expect(cached(["a"])).toBe(0);
  });

  test("a new epoch begins with nothing", () => {
    index.follow(event(0, ["a"]));
    index.follow(event(0, ["b"], [], 2));
    expect([cached(["a"]), cached(["b"])]).toEqual([0, 1]);
  });

  test("agrees with the rank whatever is lost on the way, once that was told again", () => {
    for (let seed = 1; seed <= 40; seed++) {
      index = new PrefixIndex();
      const random = fakeRandom(seed);
      const truth = new Set<string>();
      const told: Pick<KvEvents, "stored" | "removed">[] = [];
      for (let seq = 0; seq < 60; seq++) {
        const name = `h${Math.floor(random.uniform() * 12)}`;
        const stored = !truth.has(name);
        if (stored) truth.add(name);
        else truth.delete(name);
        const message = stored ? event(seq, [name]) : event(seq, [], [name]);
        const gap = random.uniform() < 0.3 ? false : !index.follow(message);
        told.push({ stored: message.stored, removed: message.removed });
        const from = index.lastSeq(rankId, 1) + 1;
        const answer = gap ? random.uniform() : 1;
        if (answer < 0.3) index.restore(snapshot(seq, [...truth]));
        else if (answer < 0.6)
          index.replay({ kind: "kv-replay", rankId, epoch: 1, seq: from, changes: told.slice(from) });
      }
      if (!index.isCurrent(rankId, 1, 59)) index.restore(snapshot(59, [...truth]));
      for (let i = 0; i < 12; i++) expect(cached([`h${i}`])).toBe(truth.has(`h${i}`) ? 1 : 0);
    }
  });

  test("I3: of many ranks each is believed to have what it told, whoever else has it, and nothing once it is forgotten", () => {
    const random = fakeRandom(3);
    const pick = (count: number): number => Math.floor(random.uniform() * count);
    const truth = new Map<RankId, { epoch: number; seq: number; names: Set<string> }>();
    for (let turn = 0; turn < 2_000; turn++) {
      const one = `d${pick(6)}` as RankId;
      const known = truth.get(one) ?? { epoch: 1, seq: 0, names: new Set<string>() };
      truth.set(one, known);
      const some = Array.from({ length: pick(4) }, () => `h${pick(8)}`);
      const what = pick(20);
      if (what === 0) {
        index.forget(one);
        truth.delete(one);
      } else if (what === 1) {
        Object.assign(known, { seq: known.seq + 5, names: new Set(some) });
        index.restore({ ...snapshot(known.seq++, some, known.epoch), rankId: one });
      } else {
        if (what === 2) Object.assign(known, { epoch: known.epoch + 1, seq: 0, names: new Set() });
        const removed = [...known.names].filter(() => random.uniform() < 0.3);
        for (const name of removed) known.names.delete(name);
        for (const name of some) known.names.add(name);
        const seq = known.seq++;
        // A rank that was forgotten tells from where it was: the index asks for everything.
        const followed = index.follow({ ...event(seq, some, removed, known.epoch), rankId: one });
        if (!followed) index.restore({ ...snapshot(seq, [...known.names], known.epoch), rankId: one });
      }
      for (let h = 0; h < 8; h++) {
        for (let d = 0; d < 6; d++) {
          const has = truth.get(`d${d}` as RankId)?.names.has(`h${h}`) ?? false;
          expect(index.cachedBlocks(`d${d}` as RankId, [hash(`h${h}`)])).toBe(has ? 1 : 0);
        }
      }
    }
  });
});
