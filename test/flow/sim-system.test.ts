import { describe, expect, test } from "vitest";
import type { Generation } from "#protocol/request.ts";
import { fakeRandom } from "../support/fake-clock.ts";
import { generationOf, promptOf } from "../support/generation.ts";
import { type SimCall, SimSystem } from "../support/sim-system.ts";

/** The answer when nothing goes wrong. */
async function calm(generation: Generation): Promise<readonly number[]> {
  const system = new SimSystem();
  await system.prefill("p");
  await system.decode("d");
  const call = system.call(generation);
  await system.ended([call]);
  expect(call.error).toBeNull();
  expect(await system.held()).toEqual([]);
  return call.tokens;
}

describe("a whole system of real nodes", () => {
  test("serves many requests at once, each with its own answer, and holds nothing afterwards", async () => {
    const generations = Array.from({ length: 24 }, (_, i) =>
      generationOf(promptOf(20 + i * 37, i), { maxNewTokens: 10 + i }),
    );
    const expected = [];
    for (const generation of generations) expected.push(await calm(generation));
    const system = new SimSystem();
    for (const name of ["p1", "p2"]) await system.prefill(name);
    for (const name of ["d1", "d2"]) await system.decode(name);
    const calls = generations.map((generation) => system.call(generation));
    await system.ended(calls);
    expect(calls.map((call) => call.tokens)).toEqual(expected);
    expect(system.fabric.pages).toBeGreaterThan(24);
    expect(await system.held()).toEqual([]);
  });

  test("a conversation's second turn finds its prefix where it was computed", async () => {
    const system = new SimSystem();
    for (const name of ["p1", "p2"]) await system.prefill(name);
    for (const name of ["d1", "d2"]) await system.decode(name);
    const prompt = promptOf(640);
    const first = system.call(generationOf(prompt, { maxNewTokens: 20 }));
    await system.ended([first]);
    const second = system.call(generationOf(Int32Array.of(...prompt, ...first.tokens, 7, 8), { maxNewTokens: 5 }));
    await system.ended([second]);
    expect(second.settled).toMatchObject({ prefill: first.settled?.prefill, decode: first.settled?.decode });
    expect(second.settled?.cachedTokens).toBeGreaterThanOrEqual(576);
    expect(await system.held()).toEqual([]);
  });

  test("a decode rank killed in mid stream: the text goes on as if nothing had happened", async () => {
    const generation = generationOf(promptOf(300), { maxNewTokens: 80 });
    const expected = await calm(generation);
    const system = new SimSystem();
    await system.prefill("p1");
    for (const name of ["d1", "d2"]) await system.decode(name);
    const call = system.call(generation);
    await system.until(() => call.tokens.length > 20);
    system.kill(system.ranks.find((rank) => rank.role === "decode" && rank.held() > 0)!);
    await system.ended([call]);
    expect(call.tokens).toEqual(expected);
    expect(call.settled?.attempts).toBe(2);
    expect(await system.held()).toEqual([]);
  });

  test("pages refused on the way: computed or sent again, the same answer", async () => {
    const generation = generationOf(promptOf(300), { maxNewTokens: 30 });
    const expected = await calm(generation);
    const system = new SimSystem();
    for (const name of ["p1", "p2"]) await system.prefill(name);
    for (const name of ["d1", "d2"]) await system.decode(name);
    let refused = 0;
    system.fabric.fault = () => (refused++ < 3 ? "checksum" : "deliver");
    const call = system.call(generation);
    await system.ended([call]);
    expect(refused).toBeGreaterThan(3);
    expect(call.tokens).toEqual(expected);
    expect(await system.held()).toEqual([]);
  });

  test("clients that leave at any moment leave nothing behind, and disturb nobody", async () => {
    for (let seed = 1; seed <= 8; seed++) {
      const random = fakeRandom(seed);
      const system = new SimSystem({ seed, localPrefillTokens: seed % 2 === 0 ? 64 : 0 });
      for (const name of ["p1", "p2"]) await system.prefill(name);
      for (const name of ["d1", "d2"]) await system.decode(name);
      const calls: { readonly call: SimCall; readonly leaves: boolean; readonly most: number }[] = [];
      for (let i = 0; i < 30; i++) {
        const most = 1 + Math.floor(random.uniform() * 40);
        const prompt = promptOf(1 + Math.floor(random.uniform() * 500), Math.floor(random.uniform() * 4));
        const call = system.call(generationOf(prompt, { maxNewTokens: most }));
        const leaves = random.uniform() < 0.5;
        if (leaves) system.clock.after(random.uniform() * 150, () => call.abort.abort());
        calls.push({ call, leaves, most });
        await system.clock.advance(random.uniform() * 10);
      }
      await system.ended(calls.map(({ call }) => call));
      for (const { call, leaves, most } of calls) {
        if (call.error === null) expect(call.tokens.length).toBe(most);
        else expect([leaves, call.error.code]).toEqual([true, "cancelled"]);
      }
      expect(await system.held()).toEqual([]);
    }
  });
});
