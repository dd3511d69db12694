import { afterEach, expect, test } from "vitest";
import { FINISH, stepEntries } from "../../native/binding/native.ts";
import { generationOf, promptOf, WHOLE } from "../support/generation.ts";
import { entriesOf, NativeRank, planOf } from "../support/native-rank.ts";

const ranks: NativeRank[] = [];
const forever = { sampling: { minNewTokens: 1000 } };

async function open(): Promise<NativeRank> {
  const rank = await NativeRank.open("decode", { kvBlocks: 200 });
  ranks.push(rank);
  return rank;
}

afterEach(async () => {
  for (const rank of ranks.splice(0)) await rank.end();
});

function maskOf(vocabSize: number, allowed: (id: number) => boolean): Uint32Array {
  const mask = new Uint32Array(Math.ceil(vocabSize / 32));
  for (let id = 0; id < vocabSize; id++) if (allowed(id)) mask[id >> 5]! |= 1 << (id & 31);
  return mask;
}

test("a masked sequence gives allowed tokens alone, the others what they give without it", async () => {
  const rank = await open();
  const { engine } = rank;
  const { vocabSize } = engine.info;
  const start = (maxNewTokens: number, salt: number, temperature: number) =>
    engine.openSequence({
      generation: generationOf(promptOf(20, salt), {
        maxNewTokens,
        sampling: { minNewTokens: 1000, temperature, seed: salt },
      }),
      mode: "compute",
      deadlineMs: 0,
      reserve: WHOLE,
    }).handle;
  const run = async (masks: boolean) => {
    const handles = [start(24, 0, 0), start(24, 1, 1), start(24, 2, 0.7)];
    const allow = (count: number) =>
      engine.setMask(
        handles[1]!,
        maskOf(vocabSize, (id) => id % 7 === count % 7),
      );
    if (masks) allow(0);
    const tokens: number[][] = [[], [], []];
    const ended = [false, false, false];
    rank.onStep = (result) => {
      for (const entry of stepEntries(result)) {
        const index = handles.findIndex(({ slot }) => slot === entry.slot);
        tokens[index]!.push(...entry.tokens);
        ended[index] ||= entry.finish !== FINISH.none;
        if (masks && index === 1 && entry.finish === FINISH.none) allow(tokens[1]!.length);
      }
    };
    engine.submit(planOf(...handles.map((handle) => [handle, 20, 100] as const)));
    await rank.until("all to end", () => ended.every(Boolean));
    for (const handle of handles) engine.closeSequence(handle, false);
    return tokens;
  };
  const free = await run(false);
  const masked = await run(true);
  expect([masked[0], masked[2]]).toEqual([free[0], free[2]]);
  expect(masked[1]).not.toEqual(free[1]);
  expect(masked[1]!.map((token) => token % 7)).toEqual(Array.from({ length: 24 }, (_, i) => i % 7));
});

test("one that waits for its mask among sixteen sits out; the others have a token in every step", async () => {
  const rank = await open();
  const { engine } = rank;
  const handles = Array.from({ length: 16 }, (_, salt) => {
    const generation = generationOf(promptOf(10, salt), { maxNewTokens: 40, ...forever });
    return engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: WHOLE }).handle;
  });
  const waiting = handles[5]!;
  engine.setMask(waiting, new Uint32Array(engine.info.vocabSize / 32).fill(2 ** 32 - 1));
  engine.submit(planOf(...handles.map((handle) => [handle, 10, 100] as const)));
  const count = (slot: number) =>
    rank.steps.flatMap(stepEntries).reduce((sum, entry) => sum + (entry.slot === slot ? entry.tokens.length : 0), 0);
  await rank.until("the others to end", () => handles.every(({ slot }) => slot === waiting.slot || count(slot) === 40));
  expect(rank.steps.length).toBe(40);
  expect(count(waiting.slot)).toBe(1);
  engine.setMask(waiting, null);
  await rank.until("its end", () => count(waiting.slot) === 40);
  expect(rank.steps.length).toBe(79);
  for (const handle of handles) engine.closeSequence(handle, false);
});

test("a prompt whose mask is late is computed but for its last row, and goes on when the mask comes", async () => {
  const rank = await open();
  const { engine } = rank;
  const generation = generationOf(promptOf(50), { maxNewTokens: 2, ...forever });
  const { handle } = engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: WHOLE });
  const only = (id: number) =>
    engine.setMask(
      handle,
      maskOf(engine.info.vocabSize, (other) => other === id),
    );
  engine.setMask(handle, new Uint32Array());
  engine.submit(planOf([handle, 50, 100]));
  await rank.until("the prompt", () => rank.steps.length === 1);
  expect(entriesOf(rank.steps[0]!)).toEqual([[handle.slot, handle.generation, 49, -1, FINISH.none, 49]]);
  only(100);
  await rank.until("the first token", () => rank.steps.length === 2);
  only(200);
  await rank.until("its end", () => entriesOf(rank.steps.at(-1)!)[0]![4] === FINISH.length);
  expect(rank.steps.flatMap(({ tokens }) => [...tokens])).toEqual([100, 200]);
  engine.closeSequence(handle, false);
});

test("a mask of the wrong size, or one that allows nothing, is refused and changes nothing", async () => {
  const rank = await open();
  const { engine } = rank;
  const { handle } = engine.openSequence({
    generation: generationOf(promptOf(10), { maxNewTokens: 2, ...forever }),
    mode: "compute",
    deadlineMs: 0,
    reserve: WHOLE,
  });
  const words = engine.info.vocabSize / 32;
  const bad = expect.objectContaining({ code: "bad_argument" });
  expect(() => engine.setMask(handle, new Uint32Array(words - 1).fill(1))).toThrow(bad);
  expect(() => engine.setMask(handle, new Uint32Array(words + 1).fill(1))).toThrow(`takes ${words}`);
  expect(() => engine.setMask(handle, new Uint32Array(words))).toThrow(bad);
  engine.submit(planOf([handle, 10, 20]));
  await rank.until("its end", () => rank.steps.at(-1)?.entries[4] === FINISH.length);
  engine.closeSequence(handle, false);
});
