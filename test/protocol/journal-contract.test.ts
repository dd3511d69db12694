import { describe, expect, test } from "vitest";
import { z } from "zod";
import type { Bus } from "#protocol/bus/bus.ts";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import type { MargayError } from "#protocol/errors.ts";
import { FILE_JOURNAL, RESPONSE_JOURNAL, subjects } from "#protocol/subjects.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { NatsServer } from "../support/nats-server.ts";

/** Control planes on one message server. */
interface Setup extends AsyncDisposable {
  open(): Promise<Bus>;
  outage(): Promise<void>;
  recover(): Promise<void>;
}

function memorySetup(): Setup {
  const network = new MemoryNetwork(systemClock, systemRandom);
  return {
    open: async () => network.connect("control-plane"),
    outage: async () => network.stop(),
    recover: async () => network.start(),
    async [Symbol.asyncDispose]() {},
  };
}

async function natsSetup(): Promise<Setup> {
  const server = await NatsServer.start();
  const buses: Bus[] = [];
  return {
    async open() {
      const bus = await server.connect("control-plane");
      buses.push(bus);
      return bus;
    },
    outage: () => server.down(),
    recover: () => server.up(),
    async [Symbol.asyncDispose]() {
      for (const bus of buses) await bus.close(1000);
      await server[Symbol.asyncDispose]();
    },
  };
}

const Note = z.strictObject({ n: z.int() });
const limits = { name: RESPONSE_JOURNAL, subjects: "margay.response.>", maxAgeMs: 600_000, maxBytes: 8_388_608 };
const one = subjects.responseLog("one");
const two = subjects.responseLog("two");

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await systemClock.sleep(2);
}

describe.each([
  ["memory", memorySetup],
  ["nats", natsSetup],
] as const)("a journal in %s", (_name, create) => {
  test("keeps what is appended, in order by subject, and takes of rivals one alone", async () => {
    await using setup = await create();
    const journal = (await setup.open()).journal(limits, Note);
    const rival = (await setup.open()).journal({ ...limits, maxBytes: 16_777_216 }, Note);
    expect(await journal.read(one, 0)).toEqual([]);
    expect(await journal.last(one)).toBeNull();
    const first = await journal.append(one, 0, { n: 1 });
    expect(await rival.append(one, 0, { n: 9 })).toBeNull();
    const second = await rival.append(one, first!, { n: 2 });
    expect(second).toBeGreaterThan(first!);
    expect(await journal.append(one, first!, { n: 9 })).toBeNull();
    expect(await journal.append(two, 0, { n: 3 })).toBeGreaterThan(second!);
    expect((await journal.read(one, 0)).map(({ value }) => value.n)).toEqual([1, 2]);
    expect(await rival.read(one, first!)).toEqual([{ seq: second, value: { n: 2 } }]);
    expect(await rival.last(two)).toMatchObject({ value: { n: 3 } });
    expect([...(await journal.list(subjects.responseLogs()))].sort()).toEqual([one, two]);
  });

  test("is read whole when it has more entries than one answer holds", async () => {
    await using setup = await create();
    const journal = (await setup.open()).journal(limits, Note);
    let last = 0;
    for (let n = 0; n < 700; n++) last = (await journal.append(one, last, { n }))!;
    expect((await journal.read(one, 0)).map(({ value }) => value.n)).toEqual(Array.from({ length: 700 }, (_, i) => i));
  });

  test("may be opened more than once by one process, for other messages on other subjects", async () => {
    await using setup = await create();
    const bus = await setup.open();
    const [notes, words] = [bus.journal(limits, Note), bus.journal(limits, z.strictObject({ word: z.string() }))];
    expect(await notes.append(one, 0, { n: 1 })).toBeGreaterThan(0);
    expect(await words.append(two, 0, { word: "a" })).toBeGreaterThan(0);
    expect(await words.last(two)).toMatchObject({ value: { word: "a" } });
    expect(await notes.last(one)).toMatchObject({ value: { n: 1 } });
  });

  test("is read a few entries at a time", async () => {
    await using setup = await create();
    const journal = (await setup.open()).journal(limits, Note);
    let last = 0;
    for (let n = 0; n < 7; n++) {
      last = (await journal.append(one, last, { n }))!;
      await journal.append(two, (await journal.last(two))?.seq ?? 0, { n: -1 });
    }
    const seen: number[] = [];
    for (let after = 0, left = true; left; ) {
      const some = await journal.read(one, after, 3);
      expect(some.length).toBeLessThanOrEqual(3);
      seen.push(...some.map(({ value }) => value.n));
      after = some.at(-1)?.seq ?? after;
      left = some.length > 0;
    }
    expect(seen).toEqual([0, 1, 2, 3, 4, 5, 6]);
  });

  test("outlives an outage; a subject that was purged is empty, and those who knew its entries append no more", async () => {
    await using setup = await create();
    const bus = await setup.open();
    const journal = bus.journal(limits, Note);
    const last = (await journal.append(one, 0, { n: 1 }))!;
    await journal.append(two, 0, { n: 2 });
    await setup.outage();
    await until(() => bus.state === "disconnected");
    const failure = await journal.append(two, 0, { n: 4 }).catch((error: MargayError) => error);
    expect(failure).toMatchObject({ code: "bus_unavailable" });
    await setup.recover();
    await until(() => bus.state === "connected");
    expect((await journal.last(one))!.seq).toBe(last);
    await journal.purge(one);
    expect(await journal.read(one, 0)).toEqual([]);
    expect(await journal.append(one, last, { n: 5 })).toBeNull();
    expect(await journal.list(subjects.responseLogs())).toEqual([two]);
  });
});

test("a journal in nats that is full refuses what is new, and keeps what it has, where it is told to", async () => {
  await using setup = await natsSetup();
  const File = z.strictObject({ bytes: z.custom<Uint8Array>((value) => value instanceof Uint8Array) });
  const room = {
    ...limits,
    name: FILE_JOURNAL,
    subjects: subjects.filesAll(),
    maxBytes: 262_144,
    refusesWhenFull: true,
  };
  const journal = (await setup.open()).journal(room, File);
  const [first, second] = [subjects.fileBody("t", "one"), subjects.fileBody("t", "two")];
  const bytes = new Uint8Array(150_000);
  expect(await journal.append(first, 0, { bytes })).toBeGreaterThan(0);
  await expect(journal.append(second, 0, { bytes })).rejects.toMatchObject({ code: "payload_too_large" });
  expect(await journal.read(first, 0)).toHaveLength(1);
  await journal.purge(first);
  expect(await journal.append(second, 0, { bytes })).toBeGreaterThan(0);
});
