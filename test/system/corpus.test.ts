import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { chatBody, type Dialogue } from "../support/dialogues.ts";
import { compareAnswers, greedyRows, inParallel } from "../support/near-tie.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { type System, startSystem } from "../support/system.ts";

/** Prompts the model was never trained on, `cpu` against `ref`. Others: `PROMPTS=file npm test`, from make-prompts.py. */

const file = process.env.PROMPTS ?? fileURLToPath(new URL("../fixtures/prompts-20261123.json", import.meta.url));
const prompts = (JSON.parse(readFileSync(file, "utf8")) as Dialogue[]).map((prompt) => ({
  ...chatBody(prompt),
  max_tokens: 64,
}));

let ref: System;
let cpu: System;

beforeAll(async () => {
  [ref, cpu] = await Promise.all([startSystem({ MARGAY_BACKEND: "ref" }), startSystem({ MARGAY_BACKEND: "cpu" })]);
  for (const system of [ref, cpu]) {
    await system.ready("prefill", 1);
    await system.ready("decode", 1);
  }
});
afterAll(async () => {
  for (const system of [ref, cpu]) expect(await system.stop()).toBe(0);
});

test("cpu gives the answers of ref, up to ties closer than the rounding noise", async () => {
  expect(prompts.length).toBeGreaterThanOrEqual(100);
  const collect = (system: System, width: number) =>
    inParallel(prompts, width, (prompt) => greedyRows(system.url, prompt));
  const [reference, answers] = await Promise.all([collect(ref, 4), collect(cpu, 8)]);
  const { noise, usualNoise, largest, tokens, partings } = compareAnswers(reference, answers);
  console.info(
    `cpu against ref: ${tokens} equal tokens, noise ${noise.toExponential(1)} (95 %: ${usualNoise.toExponential(1)}, largest ${largest.toExponential(1)})`,
    partings,
  );
  expect(tokens).toBeGreaterThan(1_000);
  expect(noise).toBeGreaterThan(0);
  expect(usualNoise).toBeLessThan(0.06);
  for (const parting of partings) expect(parting.gap).toBeLessThan(noise);
  await expectNothingHeld(ref);
  await expectNothingHeld(cpu);
}, 240_000);
