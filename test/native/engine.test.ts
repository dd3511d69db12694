import { rmSync } from "node:fs";
import { afterEach, expect, test } from "vitest";
import type { Generation } from "#protocol/request.ts";
import { FINISH } from "../../native/binding/native.ts";
import { dialogues, nanoModel } from "../support/dialogues.ts";
import { generationOf, promptOf, WHOLE } from "../support/generation.ts";
import { nanoVariant, POISON, poisonedNano } from "../support/nano-variant.ts";
import { type Generated, generate, generateTogether } from "../support/native-batch.ts";
import { NativeRank } from "../support/native-rank.ts";

const ranks: NativeRank[] = [];
const folders: string[] = [];

async function open(changes: Parameters<typeof NativeRank.open>[1] = {}): Promise<NativeRank> {
  const rank = await NativeRank.open("decode", changes);
  ranks.push(rank);
  return rank;
}

function kept(folder: string): string {
  folders.push(folder);
  return folder;
}

/** Sixteen requests that differ in everything. */
function mixedGenerations(): Generation[] {
  return Array.from({ length: 16 }, (_, i) =>
    generationOf(promptOf(5 + i * 9, i), {
      maxNewTokens: 6 + (i % 7) * 3,
      sampling: {
        temperature: i % 3 === 0 ? 0 : 0.6 + i / 20,
        topK: i % 4 === 1 ? 40 : 0,
        topP: i % 5 === 2 ? 0.9 : 1,
        minP: i % 6 === 3 ? 0.05 : 0,
        seed: 1000 + i,
        frequencyPenalty: i % 2 === 0 ? 0.3 : 0,
        repetitionPenalty: i % 7 === 4 ? 1.2 : 1,
        topLogprobs: i % 8 === 5 ? 3 : -1,
      },
    }),
  );
}

afterEach(async () => {
  for (const rank of ranks.splice(0)) await rank.end();
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

test("every recorded dialogue gets its recorded answer, and ends with end of text", async () => {
  const rank = await open();
  const { tokenizer } = await nanoModel();
  expect(dialogues.length).toBeGreaterThan(10);
  for (const { prompt, greedy } of dialogues) {
    const generated = await generate(rank, generationOf(tokenizer.encode(prompt), { maxNewTokens: 256 }));
    expect(tokenizer.decode(generated.tokens)).toEqual(greedy);
    expect([...generated.tokens]).toEqual([...tokenizer.encode(greedy)]);
    expect(generated.finish).toBe(FINISH.stop);
  }
  expect(rank.engine.stats()).toMatchObject({ sequences: 0, bytesReceived: 0, duplicatePages: 0 });
});

test("how a prompt is cut into steps changes neither tokens nor log-probabilities", async () => {
  const rank = await open();
  const generation = generationOf(promptOf(150), { maxNewTokens: 10, sampling: { topLogprobs: 20 } });
  const whole = await generate(rank, generation, 256);
  for (const chunk of [1, 7, 64]) {
    const fresh = await open();
    const cut = await generate(fresh, generation, chunk);
    expect(cut.cachedTokens).toBe(0);
    expect(cut.tokens).toEqual(whole.tokens);
    expect(cut.logprobs.map(({ ids }) => ids)).toEqual(whole.logprobs.map(({ ids }) => ids));
    for (const [i, { values }] of cut.logprobs.entries()) {
      for (const [j, value] of values.entries()) expect(value).toBeCloseTo(whole.logprobs[i]!.values[j]!, 4);
    }
  }
});

test("sixteen mixed requests give together what each gives alone", async () => {
  const alone: Generated[] = [];
  for (const generation of mixedGenerations()) {
    const rank = await open({ slots: 1 });
    alone.push(await generate(rank, generation));
    await ranks.pop()!.end();
  }
  const rank = await open();
  const tasks = mixedGenerations().map((generation) => ({ generation, attached: null }));
  const together = await generateTogether(rank, tasks, 23);
  expect(together.map(({ tokens, finish }) => ({ tokens, finish }))).toEqual(
    alone.map(({ tokens, finish }) => ({ tokens, finish })),
  );
  expect(together.map(valuesOf)).toEqual(alone.map(valuesOf));
  expect(new Set(alone.map(({ tokens }) => tokens.join())).size).toBe(16);
});

test("the same seed draws the same text, another seed another", async () => {
  const rank = await open();
  const drawn = (seed: number) =>
    generate(rank, generationOf(promptOf(40), { maxNewTokens: 16, sampling: { temperature: 1.5, seed } }));
  const first = await drawn(1);
  expect((await drawn(1)).tokens).toEqual(first.tokens);
  expect((await drawn(2)).tokens).not.toEqual(first.tokens);
});

test("a continuation with the generated tokens goes on as the first attempt would have", async () => {
  const rank = await open();
  const prompt = promptOf(70);
  const sampling = { temperature: 0.9, seed: 5, frequencyPenalty: 0.5, stopTokens: Int32Array.of(3) };
  const whole = await generate(rank, generationOf(prompt, { maxNewTokens: 12, sampling }));
  const tokens = Int32Array.from([...prompt, ...whole.tokens.slice(0, 5)]);
  const rest = await generate(rank, generationOf(tokens, { promptLength: 70, maxNewTokens: 12, sampling }));
  expect(rest.tokens).toEqual(whole.tokens.slice(5));
  expect(rest.finish).toBe(whole.finish);
});

test("a stop token ends the text and is its last token; before minNewTokens it cannot be chosen", async () => {
  const rank = await open();
  const { tokenizer } = await nanoModel();
  const tokens = tokenizer.encode(dialogues[0]!.prompt);
  const greedy = (await generate(rank, generationOf(tokens))).tokens;
  const stop = greedy[2]!;
  const stopTokens = Int32Array.of(stop);
  const stopped = await generate(rank, generationOf(tokens, { sampling: { stopTokens } }));
  expect(stopped).toMatchObject({ tokens: greedy.slice(0, 3), finish: FINISH.stop });
  const later = await generate(
    rank,
    generationOf(tokens, { maxNewTokens: 40, sampling: { stopTokens, minNewTokens: greedy.length + 4 } }),
  );
  expect(later.tokens.length).toBeGreaterThan(greedy.length + 4);
  const early = later.tokens.slice(0, greedy.length + 4);
  expect(early).not.toContain(stop);
  expect(early).not.toContain(greedy.at(-1));
});

test("maxNewTokens and the context end the text with length", async () => {
  const rank = await open({ modelFolder: kept(nanoVariant({ max_position_embeddings: 100 })) });
  expect(rank.engine.info.contextLength).toBe(100);
  const free = { sampling: { minNewTokens: 1000 } };
  const short = await generate(rank, generationOf(promptOf(10), { maxNewTokens: 1, ...free }));
  expect(short).toMatchObject({ finish: FINISH.length, tokens: [expect.any(Number)] });
  const long = await generate(rank, generationOf(promptOf(90), { maxNewTokens: 500, ...free }));
  expect(long.finish).toBe(FINISH.length);
  expect(long.tokens.length).toBe(10);
  expect(() => rank.engine.openSequence(specOf(generationOf(promptOf(100))))).toThrow(
    expect.objectContaining({ code: "too_long" }),
  );
});

test("a second identical prompt finds all rows but the last one and gets the same answer", async () => {
  const rank = await open();
  const generation = generationOf(promptOf(200), { maxNewTokens: 20, sampling: { topLogprobs: 20 } });
  const first = await generate(rank, generation);
  const before = rank.engine.stats();
  const second = await generate(rank, generation);
  const after = rank.engine.stats();
  expect([first.cachedTokens, second.cachedTokens]).toEqual([0, 199]);
  expect({ ...second, cachedTokens: 0 }).toEqual(first);
  expect(after.prefillTokens - before.prefillTokens).toBe(1);
  expect(after.prefixCachedTokens - before.prefixCachedTokens).toBe(199);
  expect(after.decodeTokens - before.decodeTokens).toBe(first.tokens.length - 1);
});

test("what the pool had no room for comes back from the second tier, and the answer is the same", async () => {
  const rank = await open({ kvBlocks: 4, kvTierBytes: 64 * 1024 * 1024 });
  const generation = generationOf(promptOf(200), { maxNewTokens: 20 });
  const first = await generate(rank, generation);
  await generate(rank, generationOf(promptOf(230, 9), { maxNewTokens: 20 }));
  const second = await generate(rank, generation);
  expect([first.cachedTokens, second.cachedTokens]).toEqual([0, 192]);
  expect(second.tokens).toEqual(first.tokens);
  const { cache, blocksAvailable } = rank.engine.stats();
  expect(cache.second).toMatchObject({ hitTokens: 192, refusedBlocks: 0, evictedBlocks: 0 });
  expect(cache.pool).toMatchObject({ hitTokens: 0, missedTokens: 630 });
  expect(cache.pool.evictedBlocks).toBeGreaterThanOrEqual(3);
  expect(blocksAvailable).toBe(4);
  await expect(NativeRank.open("prefill", { kvTierBytes: 1 })).rejects.toThrow("kvTierBytes");
});

test("a sequence whose numbers break ends alone, without a token, and its blocks are not kept", async () => {
  const rank = await open({ modelFolder: kept(poisonedNano()) });
  const sampling = {
    logitBiasIds: Int32Array.of(POISON.output),
    logitBiasValues: Float32Array.of(Number.NEGATIVE_INFINITY),
  };
  const healthy = generationOf(promptOf(70), { maxNewTokens: 5, sampling });
  const broken = generationOf(Int32Array.from([...promptOf(90, 3), POISON.token]), { maxNewTokens: 5, sampling });
  const tasks = [healthy, broken].map((generation) => ({ generation, attached: null }));
  const [good, bad] = await generateTogether(rank, tasks);
  expect(bad).toMatchObject({ tokens: [], finish: FINISH.numeric });
  expect(good!.tokens.length).toBe(5);
  expect(good!.finish).toBe(FINISH.length);
  await rank.idle();
  // The two blocks of the healthy one.
  expect(rank.engine.stats().blocks.cached).toBe(2);
});

test("cpu answers as ref does wherever the choice is clear", async () => {
  const [ref, cpu] = [await open(), await open({ backend: "cpu" })];
  expect(cpu.engine.info).toMatchObject({ backend: "cpu" });
  const generation = generationOf(promptOf(100), { maxNewTokens: 8, sampling: { topLogprobs: 2 } });
  const expected = await generate(ref, generation);
  const got = await generate(cpu, generation);
  for (const [i, { values }] of expected.logprobs.entries()) {
    if (got.tokens[i] === expected.tokens[i]) continue;
    expect(values[0]! - values[1]!).toBeLessThan(0.06);
    break;
  }
});

/** What the log-probabilities are, in whatever slot. */
function valuesOf({ logprobs }: Generated) {
  return logprobs.map(({ chosen, ids, values }) => ({ chosen, ids, values }));
}

function specOf(generation: Generation) {
  return { generation, mode: "compute", deadlineMs: 0, reserve: WHOLE } as const;
}
