import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { SequenceHandle } from "#protocol/kv.ts";
import { systemClock } from "#service/clock.ts";
import { FINISH, openEngine } from "../../native/binding/native.ts";
import { NANO } from "../support/dialogues.ts";
import { generationOf, promptOf, WHOLE } from "../support/generation.ts";
import { entriesOf, NativeRank, planOf } from "../support/native-rank.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const thrown = (code: string) => expect.objectContaining({ code });
let rank: NativeRank;

function open(tokens = promptOf(100), changes: Parameters<typeof generationOf>[1] = {}, reserve = WHOLE) {
  const generation = generationOf(tokens, changes);
  return rank.engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve });
}

function close(...handles: readonly SequenceHandle[]): void {
  for (const handle of handles) rank.engine.closeSequence(handle, false);
}

/** Runs a program against the addon in a process of its own. */
function run(body: string): { readonly code: number | null; readonly out: string } {
  const options = {
    modelFolder: NANO,
    backend: "ref",
    threads: 1,
    packedFolder: null,
    latentNormEps: null,
    weightFormat: "checkpoint",
    deterministic: false,
    speculation: 0,
    slots: 2,
    kvBlocks: 16,
    kvBytes: 0,
    kvTierBytes: 0,
    kvTierFolder: null,
    maxStepTokens: 256,
    role: "decode",
    rankId: "r",
    kvHost: "127.0.0.1",
    kvPort: 0,
    kvTransport: "auto",
    kvTls: null,
  };
  const source = `
    import { openEngine } from "${root}native/binding/native.ts";
    import { generationOf, promptOf } from "${root}test/support/generation.ts";
    const listener = { onStep() {}, onEvents() {}, onFatal() {} };
    const start = (changes) => openEngine(${JSON.stringify(options)}, { ...listener, ...changes });
    const begin = (engine) => {
      const generation = generationOf(promptOf(200));
      const { handle } = engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: 4096 });
      engine.submit(Int32Array.of(handle.slot, handle.generation, 200, 0));
      return handle;
    };
    ${body}`;
  const argv = ["--input-type=module", "--disable-warning=ExperimentalWarning", "-e", source];
  const { status, stdout, stderr } = spawnSync(process.execPath, argv, {
    cwd: root,
    timeout: 30_000,
    encoding: "utf8",
  });
  return { code: status, out: `${stdout}${stderr}` };
}

beforeEach(async () => {
  rank = await NativeRank.open("decode", { slots: 4, kvBlocks: 24 });
});
afterEach(async () => {
  await rank.end();
});

test("addon.cc defines what native.ts declares, in the same order", () => {
  const addon = readFileSync(`${root}native/src/addon/addon.cc`, "utf8");
  const native = readFileSync(`${root}native/binding/native.ts`, "utf8");
  const declared = /export interface Engine \{(.*?)\n\}/s.exec(native)![1]!.matchAll(/^ {2}(\w+)\(/gm);
  const defined = addon.matchAll(/InstanceMethod<&EngineObject::\w+>\("(\w+)"\)/g);
  const names = [...declared].map((match) => match[1]);
  expect([...defined].map((match) => match[1])).toEqual(names);
  expect(names.length).toBe(13);
  const bodies = [...addon.matchAll(/^ {2}Napi::Value (\w+)\(const Napi::CallbackInfo/gm)].map((match) => match[1]!);
  expect(bodies.map((name) => name[0]!.toLowerCase() + name.slice(1))).toEqual(names);
});

test("two steps may be queued, the running one included; a third is refused and changes nothing", async () => {
  const [a, b] = [open(), open(promptOf(100, 1))];
  expect(rank.engine.submit(planOf([a.handle, 100]))).toBe(0);
  expect(rank.engine.submit(planOf([a.handle, 1], [b.handle, 100]))).toBe(1);
  expect(() => rank.engine.submit(planOf([b.handle, 1]))).toThrow(thrown("queue_full"));
  await rank.until("both steps", () => rank.steps.length === 2);
  const [first, second] = rank.steps.map(entriesOf) as [number[][], number[][]];
  expect(first[0]!.slice(0, 3)).toEqual([a.handle.slot, a.handle.generation, 100]);
  expect(second.map((entry) => entry[5])).toEqual([101, 100]);
  expect([...first, ...second].every((entry) => entry[3]! >= 0)).toBe(true);
  expect(rank.engine.submit(planOf([b.handle, 1]))).toBe(2);
  close(a.handle, b.handle);
});

test("a plan for rows that are not there, a slot twice, no rows or too many is refused", async () => {
  const a = open(promptOf(200));
  const b = open(promptOf(100, 1));
  const bad = thrown("bad_argument");
  for (const plan of [
    planOf([a.handle, 201]),
    planOf([a.handle, 5], [a.handle, 5]),
    planOf([a.handle, 0, -1]),
    planOf([a.handle, -1]),
    planOf([a.handle, 200], [b.handle, 57]),
    new Int32Array(),
    Int32Array.of(0, 1),
  ]) {
    expect(() => rank.engine.submit(plan)).toThrow(bad);
  }
  rank.engine.submit(planOf([a.handle, 128]));
  expect(() => rank.engine.submit(planOf([a.handle, 73]))).toThrow(bad);
  rank.engine.submit(planOf([a.handle, 72]));
  await rank.until("both steps", () => rank.steps.length === 2);
  close(a.handle, b.handle);
});

test("a sequence in the batch decodes in every step to its end, with no further plan", async () => {
  const { handle } = open(promptOf(30), { maxNewTokens: 40, sampling: { minNewTokens: 40 } });
  rank.engine.submit(planOf([handle, 30, 80]));
  await rank.until("its end", () => rank.steps.at(-1)?.entries[4] === FINISH.length);
  expect(rank.steps.map(({ step, plan }) => [step, plan])).toEqual(
    Array.from({ length: 40 }, (_, i) => [i, i === 0 ? 0 : -1]),
  );
  expect(rank.steps.map((result) => entriesOf(result)[0]![5])).toEqual(Array.from({ length: 40 }, (_, i) => 30 + i));
  close(handle);
});

test("at its reserve a sequence sits out until a plan reserves more; out of the batch it keeps its blocks", async () => {
  const sampling = { minNewTokens: 200 };
  const { handle } = open(promptOf(60), { maxNewTokens: 200, sampling }, 0);
  expect(rank.engine.stats().blocks.free).toBe(23);
  rank.engine.submit(planOf([handle, 60, 70]));
  const rows = () => (rank.steps.length === 0 ? 0 : (entriesOf(rank.steps.at(-1)!)[0]?.[5] ?? 0));
  await rank.until("its reserve", () => rows() === 70);
  expect(rank.engine.stats()).toMatchObject({ steps: 11, blocks: { free: 22 } });
  rank.engine.submit(planOf([handle, 0, 130]));
  await rank.until("its reserve", () => rows() === 130);
  expect(rank.engine.stats().blocks.free).toBe(21);
  expect(rank.steps.flatMap((result) => [...result.tokens]).length).toBe(71);
  await rank.step([handle, 0]);
  rank.engine.submit(planOf([handle, 0, 140]));
  await rank.until("its reserve", () => rows() === 140);
  close(handle);
  expect(rank.engine.checkInvariants()).toBeNull();
});

test("a plan that wants more blocks than there are is refused whole", async () => {
  const [a, b] = [open(promptOf(60), { maxNewTokens: 1200 }, 0), open(promptOf(60, 1), { maxNewTokens: 1200 }, 0)];
  await rank.step([a.handle, 60], [b.handle, 60]);
  expect(() => rank.engine.submit(planOf([a.handle, 0, 900], [b.handle, 0, 900]))).toThrow(thrown("no_blocks"));
  expect(rank.engine.stats().blocks.free).toBe(22);
  rank.engine.submit(planOf([a.handle, 0, 900], [b.handle, 0, 576]));
  expect(rank.engine.stats().blocks.free).toBe(0);
  close(a.handle, b.handle);
});

test("a sequence whose given tokens are not computed cannot join; one in the batch has no rows to plan", async () => {
  const { handle } = open(promptOf(60));
  expect(() => rank.engine.submit(planOf([handle, 0, 70]))).toThrow(thrown("bad_argument"));
  expect(() => rank.engine.submit(planOf([handle, 59, 70]))).toThrow(thrown("bad_argument"));
  rank.engine.submit(planOf([handle, 60, 70]));
  expect(() => rank.engine.submit(planOf([handle, 1]))).toThrow(thrown("bad_state"));
  close(handle);
});

test("while JavaScript is away for 20 ms and more, not a token is lost or late", async () => {
  const { handle } = open(promptOf(30), { maxNewTokens: 500, sampling: { minNewTokens: 500 } });
  rank.engine.submit(planOf([handle, 30, 600]));
  await rank.until("a step", () => rank.steps.length > 0);
  const before = rank.engine.stats().steps;
  const end = systemClock.monotonic() + 100;
  while (systemClock.monotonic() < end);
  expect(rank.engine.stats().steps).toBeGreaterThan(before + 2);
  await rank.until("its end", () => rank.steps.at(-1)?.entries[4] === FINISH.length);
  expect(rank.steps.flatMap(({ tokens }) => [...tokens]).length).toBe(500);
  expect(rank.steps.map(({ step }) => step)).toEqual(rank.steps.map((_, i) => i));
  close(handle);
});

test("a sequence that kept blocks for its prompt alone gives one token and no more", async () => {
  const generation = generationOf(promptOf(64));
  const { handle } = rank.engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: 0 });
  const [entry] = await rank.step([handle, 64]);
  expect(entry![3]).toBeGreaterThanOrEqual(0);
  expect(() => rank.engine.submit(planOf([handle, 1]))).toThrow(thrown("bad_argument"));
  close(handle);
});

test("slots, blocks, the context and the vocabulary are limits, each with its code", () => {
  expect(() => open(promptOf(4096))).toThrow(thrown("too_long"));
  expect(() => open(promptOf(1520))).toThrow(thrown("no_blocks"));
  expect(() => open(Int32Array.of(5, 2048))).toThrow(thrown("bad_argument"));
  expect(() => open(Int32Array.of(5, -1))).toThrow(thrown("bad_argument"));
  expect(() => open(new Int32Array())).toThrow(thrown("bad_argument"));
  expect(() => open(promptOf(40), { promptLength: 10, maxNewTokens: 30 })).toThrow(thrown("bad_argument"));
  expect(() => open(promptOf(4), { sampling: { stopTokens: Int32Array.of(99_999) } })).toThrow(thrown("bad_argument"));
  expect(() => open(promptOf(4), { sampling: { logitBiasIds: Int32Array.of(1) } })).toThrow(thrown("bad_argument"));
  const opened = Array.from({ length: 4 }, () => open(promptOf(20)));
  expect(() => open(promptOf(20))).toThrow(thrown("no_slot"));
  close(...opened.map(({ handle }) => handle));
  expect(rank.engine.stats().blocks.free).toBe(24);
});

test("what is not of the declared type throws and names the field", () => {
  const engine = rank.engine as unknown as Record<string, (...values: unknown[]) => unknown>;
  const { handle } = open();
  const spec = { generation: generationOf(promptOf(9)), mode: "compute", deadlineMs: 0, reserve: WHOLE };
  for (const [call, words] of [
    [() => engine.openSequence!(null), "spec"],
    [() => engine.openSequence!({ ...spec, mode: "later" }), "mode"],
    [() => engine.openSequence!({ ...spec, generation: { ...spec.generation, tokens: [1, 2] } }), "tokens"],
    [() => engine.openSequence!({ ...spec, generation: { ...spec.generation, sampling: {} } }), "temperature"],
    [() => engine.openSequence!({ ...spec, deadlineMs: Number.NaN }), "deadlineMs"],
    [() => engine.closeSequence!(handle), "keep"],
    [() => engine.closeSequence!("0", true), "handle"],
    [() => engine.attach!(handle, undefined), "firstToken"],
    [() => engine.submit!([0, 1, 1]), "plan"],
    [() => engine.setMask!(handle, [1]), "mask"],
    [() => engine.exportTo!(handle, {}), "host"],
    [() => engine.setEpoch!("7"), "epoch"],
  ] as const) {
    expect(call).toThrow(thrown("bad_argument"));
    expect(call).toThrow(words);
  }
  close(handle);
});

test("a handle that was given back is refused by every call, also when its slot is used again", () => {
  const old = open().handle;
  close(old);
  const { handle } = open();
  expect(handle.slot).toBe(old.slot);
  const { engine } = rank;
  const stale = thrown("stale_handle");
  for (const bad of [old, { slot: 4, generation: 1 }, { slot: -1, generation: 1 }, { slot: 0, generation: 9 }]) {
    expect(() => engine.submit(planOf([bad, 1]))).toThrow(stale);
    expect(() => engine.closeSequence(bad, true)).toThrow(stale);
    expect(() => engine.attach(bad, null)).toThrow(stale);
    expect(() => engine.setMask(bad, null)).toThrow(stale);
    expect(() => engine.exportTo(bad, rank.targetOf(bad))).toThrow(stale);
  }
  expect(() => engine.attach(handle, null)).toThrow(thrown("bad_state"));
  expect(() => engine.exportTo(handle, rank.targetOf(handle))).toThrow(thrown("bad_state"));
  close(handle);
});

test("a sequence that waits for pages cannot be planned", () => {
  const generation = generationOf(promptOf(70));
  const deadlineMs = systemClock.now() + 10_000;
  const { handle } = rank.engine.openSequence({ generation, mode: "receive", deadlineMs, reserve: WHOLE });
  expect(() => rank.engine.submit(planOf([handle, 70]))).toThrow(thrown("bad_state"));
  expect(rank.engine.attach(handle, null)).toBe(0);
  rank.engine.submit(planOf([handle, 70]));
  close(handle);
});

test("a sequence closed while its step runs keeps slot and blocks until the step ends, and its entries are skipped", async () => {
  const [closed, stays] = [open(promptOf(200)), open(promptOf(50, 1))];
  rank.engine.submit(planOf([closed.handle, 200], [stays.handle, 50]));
  rank.engine.submit(planOf([closed.handle, 1], [stays.handle, 1]));
  close(closed.handle);
  expect(() => rank.engine.submit(planOf([closed.handle, 1]))).toThrow();
  await rank.until("both steps", () => rank.steps.length === 2);
  for (const result of rank.steps) {
    const [gone, there] = entriesOf(result);
    expect(gone!.slice(2)).toEqual([0, -1, FINISH.skipped, 0]);
    expect(there![4]).toBe(FINISH.none);
  }
  expect(rank.engine.stats()).toMatchObject({ sequences: 1 });
  close(stays.handle);
  expect(rank.engine.stats().blocks.free).toBe(24);
});

test("an entry planned for a sequence that ended meanwhile is skipped; it keeps its slot until closed", async () => {
  const { handle } = open(promptOf(30), { maxNewTokens: 1 });
  rank.engine.submit(planOf([handle, 30]));
  rank.engine.submit(planOf([handle, 1]));
  await rank.until("both steps", () => rank.steps.length === 2);
  expect(rank.steps.map((result) => entriesOf(result)[0]![4])).toEqual([FINISH.length, FINISH.skipped]);
  expect(await rank.step([handle, 1])).toEqual([[handle.slot, handle.generation, 0, -1, FINISH.skipped, 0]]);
  close(handle);
});

test("events tell what entered and left the prefix cache before the step's result does", async () => {
  const { handle } = open(promptOf(130), { maxNewTokens: 2 });
  const order: string[] = [];
  rank.onStep = () => order.push(`step after ${rank.events.filter(({ kind }) => kind === "kv").length} kv`);
  await rank.step([handle, 130]);
  expect(order).toEqual(["step after 1 kv"]);
  expect(rank.events).toEqual([{ kind: "kv", stored: rank.engine.prefixHashes(), removed: new Uint8Array() }]);
  expect(rank.engine.prefixHashes().length).toBe(32);
  close(handle);
  await rank.until("the removal", () => rank.events.length === 2);
  expect(rank.events[1]).toMatchObject({ kind: "kv", stored: new Uint8Array(), removed: { length: 32 } });
});

test("a checkpoint that is not there rejects with a sentence that names it", async () => {
  const { info: _, ...rest } = rank.engine;
  expect(rest).toBeDefined();
  const rejected = NativeRank.open("decode", { modelFolder: "/nowhere/nano" });
  await expect(rejected).rejects.toThrow("/nowhere/nano");
  await expect(rejected).rejects.toMatchObject({ code: expect.stringMatching(/^(checkpoint|io)$/) });
  for (const slots of [0, -1, 2 ** 31 - 1])
    await expect(NativeRank.open("decode", { slots })).rejects.toMatchObject({ code: "bad_argument" });
  await expect(NativeRank.open("decode", { maxStepTokens: 0 })).rejects.toThrow("maxStepTokens must be at least 1");
  await expect(NativeRank.open("decode", { kvBlocks: 0, kvBytes: 10 })).rejects.toThrow("kvBytes");
  await expect(openEngine({} as never, {} as never)).rejects.toThrow("modelFolder");
});

test("close ends at once what is there, twice is once, and every later call throws closed", async () => {
  const other = await NativeRank.open("decode");
  const generation = generationOf(promptOf(250));
  const { handle } = other.engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: WHOLE });
  other.engine.submit(planOf([handle, 250]));
  const closing = other.engine.close();
  expect(other.engine.close()).toBe(closing);
  for (const call of [
    () => other.engine.stats(),
    () => other.engine.submit(planOf([handle, 1])),
    () => other.engine.closeSequence(handle, true),
    () => other.engine.checkInvariants(),
    () => other.engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: WHOLE }),
  ]) {
    expect(call).toThrow(thrown("closed"));
  }
  await closing;
  expect(other.steps).toEqual([]);
  expect(() => other.engine.stats()).toThrow(thrown("closed"));
});

test("a process whose engine is closed ends by itself, and one that exits in the middle of a step ends cleanly", () => {
  expect(run(`const e = await start(); begin(e); await e.close(); console.log("closed");`)).toEqual({
    code: 0,
    out: "closed\n",
  });
  expect(run(`begin(await start()); process.exit(3);`)).toEqual({ code: 3, out: "" });
  expect(run(`void start(); setTimeout(() => process.exit(4), 20);`)).toEqual({ code: 4, out: "" });
  expect(run(`await start().then(() => {}); globalThis.gc?.(); setTimeout(() => process.exit(5), 50);`).code).toBe(5);
});

test("a listener that throws is an uncaught exception, and the engine goes on", () => {
  const { code, out } = run(`
    process.on("uncaughtException", (error) => console.log("caught", error.message));
    let steps = 0;
    let engine, handle;
    engine = await start({
      onStep() {
        if (++steps === 1) {
          engine.submit(Int32Array.of(handle.slot, handle.generation, 1, 0));
          throw new Error("listener");
        }
        console.log("second step");
        void engine.close();
      },
    });
    handle = begin(engine);`);
  expect(out).toBe("caught listener\nsecond step\n");
  expect(code).toBe(0);
});
