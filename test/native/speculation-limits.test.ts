import { rmSync } from "node:fs";
import { afterAll, afterEach, describe, expect, test } from "vitest";
import type { Generation } from "#protocol/request.ts";
import { DecodeBatch, type DecodeSequence } from "../../decode-node/decode-batch.ts";
import { FINISH } from "../../native/binding/native.ts";
import { dialogues, nanoModel } from "../support/dialogues.ts";
import { generationOf } from "../support/generation.ts";
import { POISON, poisonedNano } from "../support/nano-variant.ts";
import { generate, generateTogether } from "../support/native-batch.ts";
import { NativeRank } from "../support/native-rank.ts";

/** Drafts where a step goes wrong, and where the pool is too small. */

const ranks: NativeRank[] = [];
afterEach(async () => {
  for (const rank of ranks.splice(0)) await rank.end();
});

async function open(speculation: number, changes: Parameters<typeof NativeRank.open>[1] = {}): Promise<NativeRank> {
  const rank = await NativeRank.open("decode", { speculation, ...changes });
  ranks.push(rank);
  return rank;
}

describe("numbers that break while drafts are made", () => {
  const folder = poisonedNano();
  afterAll(() => rmSync(folder, { recursive: true }));
  const without = (bias: readonly (readonly [number, number])[]) => ({
    logitBiasIds: Int32Array.from([POISON.output, ...bias.map(([id]) => id)]),
    logitBiasValues: Float32Array.from([Number.NEGATIVE_INFINITY, ...bias.map(([, value]) => value)]),
    minNewTokens: 40,
  });

  /** One that says the poisonous token by itself after some others. */
  async function doomed(rank: NativeRank) {
    const { tokenizer } = await nanoModel();
    for (const { prompt } of dialogues) {
      for (const bias of [6, 8, 10, 12, 14]) {
        const generation = generationOf(tokenizer.encode(prompt), {
          maxNewTokens: 40,
          sampling: without([[POISON.token, bias]]),
        });
        const made = await generate(rank, generation);
        if (made.finish === FINISH.numeric && made.tokens.length > 5) return { generation, tokens: made.tokens };
      }
    }
    throw new Error("no prompt leads there");
  }

  test("end the one request, after the same tokens as without drafts; the others go on", async () => {
    const plain = await open(0, { modelFolder: folder });
    const { generation, tokens } = await doomed(plain);
    expect(tokens.at(-1)).toBe(POISON.token);
    const { tokenizer } = await nanoModel();
    const healthy = dialogues
      .slice(0, 3)
      .map(({ prompt }) => generationOf(tokenizer.encode(prompt), { maxNewTokens: 40, sampling: without([]) }));
    const wanted = [];
    for (const one of healthy) wanted.push(await generate(plain, one));
    for (const drafts of [1, 2, 3]) {
      const rank = await open(drafts, { modelFolder: folder });
      const tasks = [healthy[0]!, generation, ...healthy.slice(1)].map((one) => ({ generation: one, attached: null }));
      const [first, broken, ...rest] = await generateTogether(rank, tasks);
      expect(broken).toMatchObject({ tokens, finish: FINISH.numeric });
      expect([first!, ...rest].map((one) => one.tokens)).toEqual(wanted.map((one) => one.tokens));
      expect([first!, ...rest].map((one) => one.finish)).toEqual([FINISH.length, FINISH.length, FINISH.length]);
      expect(rank.engine.stats().draftsVerified).toBeGreaterThan(50);
    }
  }, 60_000);
});

describe("a pool too small for all streams, drafts on", () => {
  test.each([1, 3])(
    "every stream ends with the text it has alone, and some gave way meanwhile (%i)",
    async (drafts) => {
      const { tokenizer } = await nanoModel();
      const generations = dialogues.slice(0, 5).map(({ prompt }, i) =>
        generationOf(tokenizer.encode(prompt).slice(-60 - 7 * i), {
          maxNewTokens: 150,
          sampling: { minNewTokens: 150, temperature: i % 2 === 0 ? 0 : 0.8, seed: i },
        }),
      );
      const alone = await open(0, { kvBlocks: 64 });
      const wanted = [];
      for (const generation of generations) wanted.push((await generate(alone, generation)).tokens);
      const rank = await open(drafts, { kvBlocks: 10 });
      const { texts, preemptions } = await decodeTogether(rank, generations);
      expect(texts).toEqual(wanted);
      expect(preemptions).toBeGreaterThan(1);
      expect(rank.engine.stats().draftsAccepted).toBeGreaterThan(50);
    },
    60_000,
  );
});

/** Runs generations through the batch of a decode rank: what each said, and how often one had to give its blocks back. */
async function decodeTogether(rank: NativeRank, generations: readonly Generation[]) {
  const { engine } = rank;
  const texts: number[][] = generations.map(() => []);
  const faults: unknown[] = [];
  let [preemptions, left] = [0, generations.length];
  const batch = new DecodeBatch({
    engine,
    onPreempted: () => preemptions++,
    onStepped: () => {},
    fail: (error) => faults.push(error),
  });
  rank.onStep = (result) => batch.onStep(result);
  for (const [i, generation] of generations.entries()) {
    const reserve = batch.opening(generation.tokens.length);
    const opened = engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve });
    const tokens = Array.from(generation.tokens);
    const sequence: DecodeSequence = batch.begin(
      generation,
      {
        onTokens: (entry) => texts[i]!.push(...entry.tokens),
        onFinish: () => {
          left--;
          void batch.end(sequence, true);
        },
      },
      { handle: opened.handle, tokens, length: opened.cachedTokens, capacity: reserve },
    );
  }
  await rank.until("all streams to end", () => left === 0 || faults.length > 0);
  expect(faults).toEqual([]);
  await rank.until("the last one to be closed", () => engine.stats().sequences === 0, 5);
  batch.stop();
  rank.onStep = () => {};
  return { texts, preemptions };
}
