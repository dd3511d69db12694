import { expect, test } from "vitest";
import { KvJournal } from "#service/kv-journal.ts";

const change = (bytes: number) => ({ stored: new Uint8Array(bytes), removed: new Uint8Array() });

test("changes are numbered from 0, and those after a number are told again", () => {
  const journal = new KvJournal();
  expect([journal.seq, journal.since(-1)]).toEqual([-1, []]);
  const [a, b, c] = [change(16), change(32), change(48)];
  expect([a, b, c].map((one) => journal.note(one))).toEqual([0, 1, 2]);
  expect(journal.since(-1)).toEqual([a, b, c]);
  expect(journal.since(1)).toEqual([c]);
  expect(journal.since(2)).toEqual([]);
});

test("nobody can be told what is not kept, or never was", () => {
  const journal = new KvJournal(400);
  for (let i = 0; i < 10; i++) journal.note(change(36));
  expect(journal.since(5)).toHaveLength(4);
  expect([journal.since(4), journal.since(-1), journal.since(10)]).toEqual([null, null, null]);
});

test("a change larger than the journal is not kept", () => {
  const journal = new KvJournal(100);
  journal.note(change(16));
  journal.note(change(200));
  expect([journal.since(0), journal.since(1)]).toEqual([null, []]);
});
