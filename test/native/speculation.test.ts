import { afterEach, describe, expect, test } from "vitest";
import type { Generation } from "#protocol/request.ts";
import { systemClock } from "#service/clock.ts";
import { dialogues, nanoModel } from "../support/dialogues.ts";
import { fakeRandom } from "../support/fake-clock.ts";
import { generationOf, promptOf, WHOLE } from "../support/generation.ts";
import { type Generated, generate, generateTogether } from "../support/native-batch.ts";
import { NativeRank } from "../support/native-rank.ts";

const ranks: NativeRank[] = [];
afterEach(async () => {
  for (const rank of ranks.splice(0)) await rank.end();
});

async function open(
  speculation: number,
  changes: Parameters<typeof NativeRank.open>[1] = {},
  role: "prefill" | "decode" = "decode",
) {
  const rank = await NativeRank.open(role, { speculation, ...changes });
  ranks.push(rank);
  return rank;
}

/** Text and log-probabilities, to the bit. */
function textOf({ tokens, finish, logprobs }: Generated) {
  return { tokens, finish, logprobs: logprobs.map(({ slot: _, ...values }) => values) };
}

/** Prompts and settings of all kinds, some with words the model knows, so that drafts are right now and then. */
async function randomGenerations(seed: number, count: number): Promise<Generation[]> {
  const random = fakeRandom(seed);
  const { tokenizer } = await nanoModel();
  const below = (bound: number) => Math.floor(random.uniform() * bound);
  const maybe = <T>(share: number, value: T, otherwise: T) => (random.uniform() < share ? value : otherwise);
  return Array.from({ length: count }, (_, i) => {
    const known = tokenizer.encode(dialogues[below(dialogues.length)]!.prompt);
    const tokens = maybe(0.7, known, promptOf(1 + below(150), i));
    const maxNewTokens = 1 + below(40);
    return generationOf(tokens, {
      maxNewTokens,
      sampling: {
        temperature: maybe(0.5, 0, 0.2 + random.uniform()),
        topK: maybe(0.2, 20, 0),
        topP: maybe(0.3, 0.9, 1),
        minP: maybe(0.2, 0.05, 0),
        seed: below(1e6),
        frequencyPenalty: maybe(0.3, 0.4, 0),
        presencePenalty: maybe(0.2, -0.3, 0),
        repetitionPenalty: maybe(0.2, 1.3, 1),
        stopTokens: maybe(
          0.4,
          Int32Array.from({ length: 40 }, () => below(2048)),
          new Int32Array(),
        ),
        minNewTokens: maybe(0.3, below(maxNewTokens + 4), 0),
        logitBiasIds: maybe(0.2, Int32Array.of(below(2048)), new Int32Array()),
        logitBiasValues: new Float32Array(),
        topLogprobs: maybe(0.5, 3, -1),
      },
    });
  }).map((generation) => {
    const { sampling } = generation;
    return {
      ...generation,
      sampling: { ...sampling, logitBiasValues: new Float32Array(sampling.logitBiasIds.length).fill(2) },
    };
  });
}

describe("speculation is lossless", () => {
  test.each([
    ["ref", { backend: "ref", threads: 1 }],
    ["cpu in deterministic mode", { backend: "cpu", threads: 2, deterministic: true }],
  ] as const)(
    "on %s random requests get the same text and log-probabilities with 0 to 3 drafts, alone and together",
    async (_, numerics) => {
      const generations = await randomGenerations(5, 40);
      const plain = await open(0, numerics);
      const wanted: Generated[] = [];
      for (const generation of generations) wanted.push(await generate(plain, generation));
      for (const drafts of [1, 2, 3]) {
        const rank = await open(drafts, { ...numerics, slots: 8 });
        const got: Generated[] = [];
        for (let at = 0; at < generations.length; at += 8) {
          const tasks = generations.slice(at, at + 8).map((generation) => ({ generation, attached: null }));
          got.push(...(await generateTogether(rank, tasks, 23)));
        }
        expect(got.map(textOf)).toEqual(wanted.map(textOf));
        const alone = await generate(await open(drafts, numerics), generations[0]!);
        expect(textOf(alone)).toEqual(textOf(wanted[0]!));
        const { draftsProposed, draftsVerified, draftsAccepted, steps } = rank.engine.stats();
        expect(draftsProposed).toBeGreaterThanOrEqual(draftsVerified);
        expect(draftsVerified).toBeGreaterThan(draftsAccepted);
        expect(draftsAccepted).toBeGreaterThan(100);
        expect(steps).toBeLessThan(plain.engine.stats().steps);
      }
    },
    120_000,
  );

  test("a step without room for drafts goes without them", async () => {
    const generations = (await randomGenerations(6, 6)).map(({ tokens, sampling }) =>
      generationOf(tokens, { maxNewTokens: 20, sampling: { ...sampling, minNewTokens: 20 } }),
    );
    const tasks = generations.map((generation) => ({ generation, attached: null }));
    const wanted = await generateTogether(await open(0), tasks);
    const rank = await open(3, { maxStepTokens: 8 });
    const got = await generateTogether(rank, tasks, 2);
    expect(got.map(textOf)).toEqual(wanted.map(textOf));
    expect(Math.max(...rank.steps.map(({ entries }) => rowsOf(entries)))).toBe(8);
  }, 60_000);

  test("end of text within accepted drafts is the last token, and the length limit cuts drafts short", async () => {
    const rank = await open(3);
    const { tokenizer } = await nanoModel();
    for (const { prompt, greedy } of dialogues) {
      const answer = [...tokenizer.encode(greedy)];
      const tokens = tokenizer.encode(prompt);
      expect((await generate(rank, generationOf(tokens, { maxNewTokens: 256 }))).tokens).toEqual(answer);
      const cut = await generate(rank, generationOf(tokens, { maxNewTokens: 5 }));
      expect(cut.tokens).toEqual(answer.slice(0, 5));
    }
  }, 60_000);

  test("an attempt that goes on elsewhere draws what the first one would have drawn", async () => {
    const [first, second] = [await open(1), await open(3)];
    const { tokenizer } = await nanoModel();
    const prompt = tokenizer.encode(dialogues[3]!.prompt);
    const sampling = { temperature: 0.9, seed: 5, frequencyPenalty: 0.5, minNewTokens: 40 };
    const whole = await generate(await open(0), generationOf(prompt, { maxNewTokens: 40, sampling }));
    expect((await generate(first, generationOf(prompt, { maxNewTokens: 40, sampling }))).tokens).toEqual(whole.tokens);
    for (const made of [1, 7, 22]) {
      const tokens = Int32Array.from([...prompt, ...whole.tokens.slice(0, made)]);
      const rest = generationOf(tokens, { promptLength: prompt.length, maxNewTokens: 40, sampling });
      expect((await generate(second, rest)).tokens).toEqual(whole.tokens.slice(made));
    }
  }, 60_000);
});

describe("the draft layer's pages", () => {
  test("travel: after a transfer the same drafts are made as by one engine alone", async () => {
    const { tokenizer } = await nanoModel();
    let accepted = 0;
    // Fresh engines each time: the last row of a cached prefix was made for the token that followed it then.
    for (const { prompt } of dialogues.slice(0, 6)) {
      const [p, d, alone] = [await open(1, {}, "prefill"), await open(1), await open(1)];
      const generation = generationOf(tokenizer.encode(prompt), { maxNewTokens: 40 });
      const [rows, deadlineMs] = [generation.tokens.length, systemClock.now() + 20_000];
      const there = d.engine.openSequence({ generation, mode: "receive", deadlineMs, reserve: WHOLE });
      const here = p.engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: 0 });
      const local = alone.engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: WHOLE });
      p.engine.exportTo(here.handle, d.targetOf(there.handle));
      const compute = async (rank: NativeRank, { handle }: typeof here) => {
        let token = -1;
        for (let at = 0; at < rows; at += 50) token = (await rank.step([handle, Math.min(50, rows - at)]))[0]![3]!;
        return token;
      };
      const firstToken = await compute(p, here);
      expect(await compute(alone, local)).toBe(firstToken);
      p.engine.closeSequence(here.handle, true);
      await d.event("received", there.handle);
      d.engine.attach(there.handle, firstToken);
      const rest = async (rank: NativeRank, { handle }: typeof here) =>
        (await generateTogether(rank, [{ generation, attached: { handle, length: rows, firstToken } }]))[0]!;
      expect((await rest(d, there)).tokens).toEqual((await rest(alone, local)).tokens);
      const drafts = [d, alone].map(({ engine }) => {
        const { draftsProposed, draftsVerified, draftsAccepted } = engine.stats();
        return { draftsProposed, draftsVerified, draftsAccepted };
      });
      expect(drafts[0]).toEqual(drafts[1]);
      accepted += drafts[0]!.draftsAccepted;
      expect(p.engine.info.attentions).toBe(7);
      expect(p.engine.stats()).toMatchObject({ draftsProposed: 0, draftsVerified: 0 });
      for (const rank of ranks.splice(0)) await rank.end();
    }
    expect(accepted).toBeGreaterThan(40);
  }, 60_000);

  test("are part of the layout: engines that differ in having them exchange none", async () => {
    const [p, d] = [await open(0, {}, "prefill"), await open(1)];
    expect(p.engine.info.layout).not.toBe(d.engine.info.layout);
    expect(d.engine.info.speculation).toBe(1);
    await expect(NativeRank.open("decode", { speculation: 8 })).rejects.toThrow("speculation must be from 0 to 7");
  });
});

test("drafts on the recorded dialogues are nearly always right", async () => {
  const rank = await open(1);
  const { tokenizer } = await nanoModel();
  for (const { prompt } of dialogues)
    await generate(rank, generationOf(tokenizer.encode(prompt), { maxNewTokens: 256 }));
  const { draftsProposed, draftsVerified, draftsAccepted } = rank.engine.stats();
  expect(draftsAccepted / draftsProposed).toBeGreaterThan(0.85);
  expect(draftsVerified).toBeGreaterThan(0.9 * draftsProposed);
});

function rowsOf(entries: Int32Array): number {
  let rows = 0;
  for (let at = 0; at < entries.length; at += 6) rows += entries[at + 2]!;
  return rows;
}
