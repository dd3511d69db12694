import { afterEach, beforeEach, expect, test } from "vitest";
import { blockHashes, splitHashes } from "#protocol/block-hash.ts";
import type { SequenceHandle } from "#protocol/kv.ts";
import { SIM_ENGINE } from "../../control-plane/simulate/sim-worker-config.ts";
import type { EngineEvent, EngineOptions, ExportTarget, StepResult } from "../../native/binding/native.ts";
import { FINISH } from "../../native/binding/native.ts";
import { type SimEngine, simEngineOpener } from "../../native/binding/sim-engine.ts";
import { SimFabric } from "../../native/binding/sim-fabric.ts";
import { type SimModel, simModel } from "../../native/binding/sim-model.ts";
import { SIM_EOS_TOKEN, simToken } from "../../native/binding/sim-token.ts";
import { FakeClock } from "../support/fake-clock.ts";
import { generationOf, promptOf, WHOLE } from "../support/generation.ts";
import { entriesOf, planOf as plan } from "../support/native-rank.ts";

let clock: FakeClock;
let fabric: SimFabric;
let opened: Rank[];

interface Rank {
  readonly engine: SimEngine;
  readonly steps: StepResult[];
  readonly events: EngineEvent[];
  readonly fatal: string[];
}

async function openRank(
  role: "prefill" | "decode",
  changes: Partial<EngineOptions> = {},
  model: Partial<SimModel> = {},
): Promise<Rank> {
  const rank = { steps: [] as StepResult[], events: [] as EngineEvent[], fatal: [] as string[] };
  const engine = await simEngineOpener(simModel(clock, fabric, model))(
    {
      ...SIM_ENGINE,
      ...{ slots: 4, kvBlocks: 16, role, rankId: `${role}-r0` },
      ...changes,
    },
    {
      onStep: (result) => rank.steps.push(result),
      onEvents: (events) => rank.events.push(...events),
      onFatal: (message) => rank.fatal.push(message),
    },
  );
  engine.setEpoch(7);
  const whole = { ...rank, engine };
  opened.push(whole);
  return whole;
}

function entry(result: StepResult | undefined, index = 0): readonly number[] {
  return entriesOf(result!)[index]!;
}

function compute(engine: SimEngine, tokens: Int32Array, maxNewTokens = 32, reserve = WHOLE) {
  const generation = generationOf(tokens, { maxNewTokens });
  return engine.openSequence({ generation, mode: "compute", deadlineMs: clock.now() + 10_000, reserve });
}

function receive(engine: SimEngine, tokens: Int32Array, deadlineMs = clock.now() + 10_000) {
  return engine.openSequence({ generation: generationOf(tokens), mode: "receive", deadlineMs, reserve: WHOLE });
}

function targetOf(rank: Rank, handle: SequenceHandle, changes: Partial<ExportTarget> = {}): ExportTarget {
  const { kvPort: port, hostKey } = rank.engine.info;
  return {
    host: "127.0.0.1",
    port,
    hostKey,
    epoch: 7,
    handle,
    cachedTokens: 0,
    deadlineMs: clock.now() + 5_000,
    ...changes,
  };
}

beforeEach(() => {
  clock = new FakeClock();
  fabric = new SimFabric();
  opened = [];
});

afterEach(async () => {
  for (const { engine } of opened) {
    expect(engine.checkInvariants()).toBeNull();
    await engine.close();
  }
});

test("a chunked prompt gives the token that the prompt and position alone decide", async () => {
  const { engine, steps } = await openRank("decode");
  const tokens = promptOf(100);
  const { handle } = compute(engine, tokens);
  engine.submit(plan([handle, 70]));
  engine.submit(plan([handle, 30]));
  await clock.advance(10);
  expect(entry(steps[0]).slice(2)).toEqual([70, -1, FINISH.none, 70]);
  const first = simToken(tokens, 100, 100, engine.info.vocabSize);
  expect(entry(steps[1]).slice(2)).toEqual([30, first, FINISH.none, 100]);
  engine.closeSequence(handle, false);
  expect(engine.stats().blocks.free).toBe(16);
});

test("a continuation elsewhere gives the tokens the first rank would have given", async () => {
  const run = async (tokens: Int32Array, promptLength: number, rows: number) => {
    const { engine, steps } = await openRank("decode");
    const generation = generationOf(tokens, { promptLength, maxNewTokens: 8 });
    const { handle } = engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: WHOLE });
    engine.submit(plan([handle, tokens.length]));
    for (let i = 1; i < rows; i++) {
      await clock.advance(10);
      engine.submit(plan([handle, 1]));
    }
    await clock.advance(10);
    engine.closeSequence(handle, true);
    return steps.map((step) => entry(step)[3]!);
  };
  const prompt = promptOf(40);
  const whole = await run(prompt, 40, 8);
  const rest = await run(Int32Array.from([...prompt, ...whole.slice(0, 3)]), 40, 5);
  expect(rest).toEqual(whole.slice(3));
});

test("the input of a queued decode step may be the token that the running one produces; a third step is refused", async () => {
  const { engine, steps } = await openRank("decode");
  const { handle } = compute(engine, promptOf(10));
  engine.submit(plan([handle, 10]));
  engine.submit(plan([handle, 1]));
  expect(() => engine.submit(plan([handle, 1]))).toThrow(expect.objectContaining({ code: "queue_full" }));
  await clock.advance(10);
  expect(steps.map((step) => step.step)).toEqual([0, 1]);
  expect(steps.every((step) => entry(step)[3]! >= 0)).toBe(true);
  engine.closeSequence(handle, true);
});

test("a plan for rows that are not there, twice one slot, or too many rows is refused", async () => {
  const { engine } = await openRank("decode");
  const { handle } = compute(engine, promptOf(200));
  const bad = expect.objectContaining({ code: "bad_argument" });
  expect(() => engine.submit(plan([handle, 129]))).toThrow(bad);
  expect(() => engine.submit(plan([handle, 5], [handle, 5]))).toThrow(bad);
  expect(() => engine.submit(plan([handle, 0, -1]))).toThrow(bad);
  expect(() => engine.submit(new Int32Array())).toThrow(bad);
  engine.submit(plan([handle, 128]));
  expect(() => engine.submit(plan([handle, 73]))).toThrow(bad);
  await clock.advance(10);
  engine.closeSequence(handle, true);
});

test("slots, blocks and the context are limits, each with its code", async () => {
  const { engine } = await openRank("decode", { slots: 2, kvBlocks: 4 });
  const thrown = (code: string) => expect.objectContaining({ code });
  expect(() => compute(engine, promptOf(4096))).toThrow(thrown("too_long"));
  expect(() => compute(engine, promptOf(300))).toThrow(thrown("no_blocks"));
  const a = compute(engine, promptOf(20));
  const b = compute(engine, promptOf(30));
  expect(() => compute(engine, promptOf(10))).toThrow(thrown("no_slot"));
  engine.closeSequence(a.handle, true);
  engine.closeSequence(b.handle, true);
  expect(() => engine.closeSequence(b.handle, true)).toThrow(thrown("stale_handle"));
  expect(engine.stats().blocks.free).toBe(4);
});

test("a handle that was given back is refused, also when its slot is used again", async () => {
  const { engine } = await openRank("decode");
  const old = compute(engine, promptOf(20)).handle;
  engine.closeSequence(old, true);
  const { handle } = compute(engine, promptOf(20));
  expect(handle.slot).toBe(old.slot);
  expect(handle.generation).not.toBe(old.generation);
  expect(() => engine.submit(plan([old, 20]))).toThrow(expect.objectContaining({ code: "stale_handle" }));
  engine.closeSequence(handle, true);
});

test("a sequence closed while its step runs keeps its blocks until the step ends, and its entry is skipped", async () => {
  const { engine, steps } = await openRank("decode");
  const { handle } = compute(engine, promptOf(20));
  engine.submit(plan([handle, 20]));
  engine.closeSequence(handle, false);
  expect(engine.stats().blocks.free).toBe(15);
  await clock.advance(10);
  expect(entry(steps[0])[4]).toBe(FINISH.skipped);
  expect(engine.stats().blocks.free).toBe(16);
});

test("end of text, stop tokens, length and a broken number each end the request with their code", async () => {
  const tokens = promptOf(10);
  const second = simToken(tokens, 10, 11, 2048);
  const finishes: number[] = [];
  const cases: readonly [Partial<SimModel>, Parameters<typeof generationOf>[1]][] = [
    [{ eosAt: (_, index) => index === 1 }, {}],
    [{}, { sampling: { stopTokens: Int32Array.of(second) } }],
    [{}, { maxNewTokens: 2 }],
    [{ numericAt: (_, index) => index === 1 }, {}],
    [{ eosAt: () => true }, { maxNewTokens: 2, sampling: { minNewTokens: 2 } }],
  ];
  for (const [model, changes] of cases) {
    const { engine, steps } = await openRank("decode", {}, model);
    const generation = generationOf(tokens, changes);
    const { handle } = engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: WHOLE });
    engine.submit(plan([handle, 10]));
    engine.submit(plan([handle, 1]));
    await clock.advance(10);
    expect(entry(steps[0])[4]).toBe(FINISH.none);
    finishes.push(entry(steps[1])[4]!);
    if (model.eosAt !== undefined && changes?.sampling === undefined) expect(entry(steps[1])[3]).toBe(SIM_EOS_TOKEN);
    engine.closeSequence(handle, true);
  }
  expect(finishes).toEqual([FINISH.stop, FINISH.stop, FINISH.length, FINISH.numeric, FINISH.length]);
});

test("full blocks stay in the prefix cache, are found again by their real hashes, and go least recently used first", async () => {
  const { engine, events, steps } = await openRank("decode", { kvBlocks: 6, maxStepTokens: 512 });
  const tokens = promptOf(128);
  const run = async (prompt: Int32Array) => {
    const { handle, cachedTokens } = compute(engine, prompt, 4);
    engine.submit(plan([handle, prompt.length - cachedTokens]));
    await clock.advance(10);
    engine.closeSequence(handle, true);
    await clock.advance(1);
    return cachedTokens;
  };
  expect(await run(tokens)).toBe(0);
  expect(splitHashes(engine.prefixHashes())).toEqual(blockHashes("sim", tokens));
  expect(engine.stats().blocks.cached).toBe(2);
  expect(await run(tokens)).toBe(64);
  expect(entry(steps.at(-1))[3]).toBe(simToken(tokens, 128, 128, 2048));
  expect(await run(promptOf(300, 5))).toBe(0);
  const hashes = new Set<string>();
  for (const event of events) {
    if (event.kind !== "kv") continue;
    for (const hash of splitHashes(event.stored)) hashes.add(hash);
    for (const hash of splitHashes(event.removed)) hashes.delete(hash);
  }
  expect([...hashes].sort()).toEqual(splitHashes(engine.prefixHashes()).sort());
  expect(engine.stats().prefixCachedTokens).toBe(64);
});

test("pages travel to a decode rank while the prompt is computed; both ranks count the same bytes", async () => {
  const [p, d] = [await openRank("prefill"), await openRank("decode")];
  const tokens = promptOf(150);
  const { handle: there } = receive(d.engine, tokens);
  const { handle: here } = compute(p.engine, tokens, 32, 0);
  p.engine.exportTo(here, targetOf(d, there));
  p.engine.submit(plan([here, 100]));
  await clock.advance(5);
  expect(d.engine.stats().pagesReceived).toBe(6);
  expect(() => d.engine.attach(there, 5)).toThrow(expect.objectContaining({ code: "bad_state" }));
  p.engine.submit(plan([here, 50]));
  await clock.advance(2);
  p.engine.closeSequence(here, true);
  expect(p.engine.stats().sequences).toBe(1);
  await clock.advance(5);
  expect(p.engine.stats()).toMatchObject({ sequences: 0, bytesSent: 18 * 32_768 });
  expect(d.engine.stats().bytesReceived).toBe(18 * 32_768);
  expect(p.events).toContainEqual(expect.objectContaining({ kind: "sent", pages: 18 }));
  expect(d.events).toContainEqual(expect.objectContaining({ kind: "received", handle: there, pages: 18 }));
  const first = entry(p.steps[1])[3]!;
  d.engine.attach(there, first);
  d.engine.submit(plan([there, 1]));
  await clock.advance(5);
  expect(entry(d.steps[0]).slice(2)).toEqual([1, simToken(tokens, 150, 151, 2048), FINISH.none, 151]);
  expect(d.engine.stats()).toMatchObject({ prefillTokens: 0, decodeTokens: 1 });
  d.engine.closeSequence(there, true);
});

test("pages the decode rank has are not sent again", async () => {
  const [p, d] = [await openRank("prefill"), await openRank("decode")];
  const tokens = promptOf(150);
  const warm = compute(d.engine, tokens, 4);
  d.engine.submit(plan([warm.handle, 128]));
  await clock.advance(5);
  d.engine.closeSequence(warm.handle, true);
  const there = receive(d.engine, tokens);
  expect(there.cachedTokens).toBe(128);
  const { handle: here } = compute(p.engine, tokens, 32, 0);
  p.engine.exportTo(here, targetOf(d, there.handle, { cachedTokens: 128 }));
  p.engine.submit(plan([here, 128]));
  p.engine.submit(plan([here, 22]));
  await clock.advance(10);
  expect(d.engine.stats().pagesReceived).toBe(6);
  p.engine.closeSequence(here, true);
  d.engine.closeSequence(there.handle, true);
});

test("stale epochs, stale handles and unknown pages are refused and counted by cause", async () => {
  const [p, d] = [await openRank("prefill"), await openRank("decode")];
  const cases: readonly [string, Partial<ExportTarget>, Int32Array][] = [
    ["stale_epoch", { epoch: 6 }, promptOf(150)],
    ["stale_handle", { handle: { slot: 0, generation: 99 } }, promptOf(150)],
    ["unknown_page", { cachedTokens: 192 }, promptOf(250)],
  ];
  const there = receive(d.engine, promptOf(150));
  for (const [cause, changes, tokens] of cases) {
    const { handle } = compute(p.engine, tokens, 32, 0);
    p.engine.exportTo(handle, targetOf(d, there.handle, changes));
    for (let left = tokens.length; left > 0; left -= 125) p.engine.submit(plan([handle, Math.min(125, left)]));
    await clock.advance(10);
    p.engine.closeSequence(handle, false);
    expect(p.events.filter((event) => event.kind === "send-failed").at(-1)).toMatchObject({ handle, cause });
    expect(d.engine.stats().framesRefused).toMatchObject({ [cause]: 1 });
  }
  d.engine.closeSequence(there.handle, true);
});

test("whoever reads pages of another text notices, and says another token", async () => {
  const [p, d] = [await openRank("prefill"), await openRank("decode")];
  const mine = promptOf(150);
  const theirs = promptOf(150, 3);
  const there = receive(d.engine, mine);
  const { handle } = compute(p.engine, theirs, 32, 0);
  p.engine.exportTo(handle, targetOf(d, there.handle));
  p.engine.submit(plan([handle, 125]));
  p.engine.submit(plan([handle, 25]));
  await clock.advance(10);
  p.engine.closeSequence(handle, false);
  d.engine.attach(there.handle, 77);
  expect(d.engine.checkInvariants()).toBeNull();
  d.engine.submit(plan([there.handle, 1]));
  await clock.advance(10);
  expect(entry(d.steps[0])[3]).toBe(simToken(theirs, 150, 151, d.engine.info.vocabSize));
  expect(d.engine.violation).toMatch(/^B2: slot 0 reads rows of another text/);
  expect(d.engine.checkInvariants()).toBe(d.engine.violation);
  opened.splice(opened.indexOf(d), 1);
  await d.engine.close();
});

test("a lost page fails the send at its deadline, and the reservation lapses at its own", async () => {
  const [p, d] = [await openRank("prefill"), await openRank("decode")];
  fabric.fault = (page) => (page.index === 1 ? "lose" : "deliver");
  const there = receive(d.engine, promptOf(100));
  const { handle } = compute(p.engine, promptOf(100), 32, 0);
  p.engine.exportTo(handle, targetOf(d, there.handle));
  p.engine.submit(plan([handle, 100]));
  await clock.advance(100);
  p.engine.closeSequence(handle, true);
  await clock.advance(4_800);
  expect(p.engine.stats().sequences).toBe(1);
  await clock.advance(100);
  expect(p.events).toContainEqual({ kind: "send-failed", handle, cause: "late" });
  expect(p.engine.stats().sequences).toBe(0);
  await clock.advance(5_000);
  expect(d.events).toContainEqual({ kind: "lapsed", handle: there.handle });
  expect(d.engine.stats().blocks.free).toBe(16);
});

test("a decode rank may compute a prompt it has no pages of", async () => {
  const { engine, steps } = await openRank("decode");
  const tokens = promptOf(70);
  const { handle } = receive(engine, tokens);
  expect(() => engine.submit(plan([handle, 70]))).toThrow(expect.objectContaining({ code: "bad_state" }));
  engine.attach(handle, null);
  engine.submit(plan([handle, 70]));
  await clock.advance(5);
  expect(entry(steps[0])[3]).toBe(simToken(tokens, 70, 70, 2048));
  expect(engine.stats().prefillTokens).toBe(70);
  engine.closeSequence(handle, true);
});

test("log-probabilities come with the width that was asked for", async () => {
  const { engine, steps } = await openRank("decode");
  const generation = generationOf(promptOf(10), { sampling: { topLogprobs: 3 } });
  const { handle } = engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: WHOLE });
  engine.submit(plan([handle, 10]));
  await clock.advance(5);
  expect(steps[0]!.logprobs[0]).toMatchObject({ slot: handle.slot, chosen: -0.25 });
  expect(steps[0]!.logprobs[0]!.ids.length).toBe(3);
  engine.closeSequence(handle, true);
});

test("an engine that fails says so once and refuses everything after", async () => {
  const { engine, fatal } = await openRank("decode");
  engine.fail("out of memory");
  expect(fatal).toEqual([]);
  await clock.advance(0);
  expect(fatal).toEqual(["out of memory"]);
  expect(() => compute(engine, promptOf(5))).toThrow(expect.objectContaining({ code: "closed" }));
});
