import { describe, expect, test } from "vitest";
import type { Generation } from "#protocol/request.ts";
import { SIM_ENGINE } from "../../control-plane/simulate/sim-worker-config.ts";
import { DecodeBatch, type DecodeSequence } from "../../decode-node/decode-batch.ts";
import { FINISH } from "../../native/binding/native.ts";
import { type SimEngine, simEngineOpener } from "../../native/binding/sim-engine.ts";
import { SimFabric } from "../../native/binding/sim-fabric.ts";
import { simModel } from "../../native/binding/sim-model.ts";
import { FakeClock, fakeRandom } from "../support/fake-clock.ts";
import { generationOf, promptOf } from "../support/generation.ts";
import { simTokens } from "../support/node-world.ts";

interface Stream {
  readonly generation: Generation;
  readonly sequence: DecodeSequence;
  readonly tokens: number[];
  finish: number;
}

/** A batch over a simulated engine whose pool is too small for what it is given. */
async function harness(kvBlocks: number, slots = 16) {
  const clock = new FakeClock();
  const preempted: DecodeSequence[] = [];
  const live = new Set<Stream>();
  const faults: unknown[] = [];
  let engine: SimEngine | null = null;
  let batch: DecodeBatch | null = null;
  engine = await simEngineOpener(simModel(clock, new SimFabric()))(
    {
      ...SIM_ENGINE,
      ...{ speculation: 0, slots, kvBlocks, maxStepTokens: 64, role: "decode", rankId: "decode-r0" },
    },
    {
      onStep: (result) => batch!.onStep(result),
      onEvents: () => {},
      onFatal: (message) => faults.push(message),
    },
  );
  batch = new DecodeBatch({
    engine,
    onPreempted: () => {
      for (const { sequence } of live) {
        if (sequence.phase === "preempted" && !preempted.includes(sequence)) preempted.push(sequence);
      }
    },
    onStepped: () => {},
    fail: (error) => faults.push(error),
  });
  const decode = batch;
  const real = engine;

  /** Null: refused for want of blocks or of a slot, or because streams wait. */
  const begin = (generation: Generation): Stream | null => {
    if (decode.pressed) return null;
    const capacity = decode.opening(generation.tokens.length);
    const tokens = Array.from(generation.tokens);
    try {
      const opened = real.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: capacity });
      const owner = {
        onTokens: (entry: { readonly tokens: readonly number[] }) => stream.tokens.push(...entry.tokens),
        onFinish: (finish: number) => {
          stream.finish = finish;
          live.delete(stream);
          void decode.end(stream.sequence, true);
        },
      };
      const at = { handle: opened.handle, tokens, length: opened.cachedTokens, capacity };
      const stream: Stream = {
        generation,
        tokens: [],
        finish: FINISH.none,
        sequence: decode.begin(generation, owner, at),
      };
      live.add(stream);
      return stream;
    } catch {
      return null;
    }
  };
  return { clock, engine: real, batch: decode, begin, live, preempted, faults };
}

const endless = { sampling: { minNewTokens: 4000 } };

test("streams that outgrow the pool take turns: each ends with the text it would have had alone, none out of memory", async () => {
  const { clock, engine, begin, live, preempted, faults } = await harness(12);
  const streams = [0, 1, 2, 3].map((i) => begin(generationOf(promptOf(100, i), { maxNewTokens: 400, ...endless })));
  for (let i = 0; i < 4000 && live.size > 0; i++) await clock.advance(2);
  expect(live.size).toBe(0);
  for (const stream of streams) {
    expect(stream!.finish).toBe(FINISH.length);
    expect(stream!.tokens).toEqual(simTokens(stream!.generation, 0, 400));
  }
  expect(faults).toEqual([]);
  expect(preempted.length).toBeGreaterThan(0);
  expect(preempted).not.toContain(streams[0]!.sequence);
  expect(engine.stats()).toMatchObject({ sequences: 0 });
  expect(engine.checkInvariants()).toBeNull();
});

test("the higher priority keeps its blocks, though it is younger", async () => {
  const { clock, begin, live, preempted } = await harness(12);
  const old = [0, 1, 2].map((i) => begin(generationOf(promptOf(100, i), { maxNewTokens: 400, ...endless }))!);
  const urgent = begin(generationOf(promptOf(100, 9), { maxNewTokens: 400, priority: 1, ...endless }))!;
  while (urgent.finish === FINISH.none) await clock.advance(2);
  expect(old.every(({ finish }) => finish === FINISH.none)).toBe(true);
  expect(preempted).not.toContain(urgent.sequence);
  expect(preempted.length).toBeGreaterThan(0);
  for (let i = 0; i < 4000 && live.size > 0; i++) await clock.advance(2);
  expect(live.size).toBe(0);
});

test("a preempted stream finds most of its blocks in the cache when it comes back", async () => {
  const { clock, batch, begin } = await harness(12);
  const [first, second] = [0, 1].map((i) => begin(generationOf(promptOf(250, i), { maxNewTokens: 300, ...endless }))!);
  for (let i = 0; i < 700 && !batch.pressed; i++) await clock.advance(1);
  expect(second!.sequence.phase).toBe("preempted");
  const ended = batch.end(first!.sequence, false);
  await clock.advance(50);
  await ended;
  expect(second!.sequence.phase).toBe("decoding");
  expect(second!.sequence.work.computedTokens).toBeLessThan(250 + 64);
});

describe("over random loads", () => {
  for (let seed = 1; seed <= 5; seed++) {
    test(`20 000 steps: everybody ends with the right text, the pool adds up, the first is never preempted (seed ${seed})`, async () => {
      const { clock, engine, batch, begin, live, preempted, faults } = await harness(10 + seed * 2, 12);
      const random = fakeRandom(seed);
      const below = (limit: number) => Math.floor(random.uniform() * limit);
      const waits = new Map<Stream, number>();
      let done = 0;
      let salt = 0;
      while (engine.stats().steps < 20_000) {
        if (random.uniform() < 0.3) {
          const changes = { maxNewTokens: 1 + below(300), priority: below(3), ...endless };
          const prompt = promptOf(1 + below(200), salt++ % 6);
          begin(generationOf(prompt, changes));
        }
        const order = [...live].sort(
          (a, b) => b.generation.priority - a.generation.priority || a.sequence.arrival - b.sequence.arrival,
        );
        await clock.advance(5);
        for (const stream of order) {
          if (stream.finish === FINISH.none) continue;
          done++;
          const expected = simTokens(stream.generation, 0, stream.generation.maxNewTokens);
          if (stream.tokens.join() !== expected.join()) throw new Error("another text");
        }
        if (
          order[0] !== undefined &&
          preempted.includes(order[0].sequence) &&
          order[0].sequence.phase === "preempted"
        ) {
          waits.set(order[0], (waits.get(order[0]) ?? 0) + 1);
          // It was preempted when it was not the first; those before it have ended, younger ones end in bounded time.
          if (waits.get(order[0])! > 400) throw new Error("the first starves");
        }
        const broken = engine.checkInvariants();
        if (broken !== null) throw new Error(broken);
      }
      for (let i = 0; i < 20_000 && live.size > 0; i++) await clock.advance(5);
      expect([live.size, batch.size, faults]).toEqual([0, 0, []]);
      expect(done).toBeGreaterThan(100);
      expect(preempted.length).toBeGreaterThan(5);
      const { blocks } = engine.stats();
      expect(blocks.free + blocks.cached).toBe(engine.info.kvBlocks);
    }, 120_000);
  }
});
