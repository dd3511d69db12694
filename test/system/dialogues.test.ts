import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { RankStatus } from "#protocol/operator.ts";
import { type Answer, stream, unary } from "../support/client.ts";
import { chatBody, type Dialogue, dialogues, expectedAnswer, nanoModel } from "../support/dialogues.ts";
import { compareAnswers, greedyRows } from "../support/near-tie.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { type System, startSystem } from "../support/system.ts";

/** Every recorded dialogue through gateway, bus, prefill process, transfer and decode process. */

const { tokenizer } = await nanoModel();

let ref: System;
let cpu: System;
let prefill: RankStatus;
let decode: RankStatus;

beforeAll(async () => {
  [ref, cpu] = await Promise.all([startSystem({ MARGAY_BACKEND: "ref" }), startSystem({ MARGAY_BACKEND: "cpu" })]);
  prefill = (await ref.ready("prefill", 1))[0]!;
  decode = (await ref.ready("decode", 1))[0]!;
  await cpu.ready("prefill", 1);
});
afterAll(async () => {
  for (const system of [ref, cpu]) expect(await system.stop()).toBe(0);
});

/** The recipe cut long answers at its own length, so no more is asked for than was recorded. */
const requestOf = (dialogue: Dialogue) => ({
  ...chatBody(dialogue),
  temperature: 0,
  max_tokens: tokenizer.encode(dialogue.greedy).length,
});

function expectRecorded(answer: Answer, dialogue: Dialogue): void {
  const expected = expectedAnswer(dialogue);
  expect(answer.error).toBeNull();
  expect(answer.ended).toBe(true);
  expect(answer.reasoning).toBe(expected.reasoning);
  expect(answer.content).toBe(expected.content);
  expect(answer.toolCalls.map((call) => ({ name: call.name, arguments: JSON.parse(call.arguments) }))).toEqual(
    expected.toolCalls,
  );
  const whole = dialogue.greedy.endsWith("</longcat_s>");
  expect(answer.finish).toBe(expected.toolCalls.length > 0 ? "tool_calls" : whole ? "stop" : "length");
  expect(answer.usage).toMatchObject({
    prompt_tokens: tokenizer.encode(dialogue.prompt).length,
    completion_tokens: tokenizer.encode(dialogue.greedy).length,
  });
}

const sum = (samples: ReadonlyMap<string, number>) => [...samples.values()].reduce((a, b) => a + b, 0);

describe("on ref", () => {
  test.each(dialogues.map((dialogue, number) => [number, dialogue] as const))(
    "dialogue %i gives the recorded answer, unary and streamed, by different workers",
    async (_number, dialogue) => {
      const whole = await unary(ref.url, "/v1/chat/completions", requestOf(dialogue));
      expectRecorded(whole, dialogue);
      expect(whole.headers.get("x-margay-prefill")).toBe(prefill.workerId);
      expect(whole.headers.get("x-margay-decode")).toBe(decode.workerId);
      expect(prefill.pid).not.toBe(decode.pid);
      expect(whole.headers.get("server-timing")).toMatch(
        /^queue;dur=[\d.]+, prefill;dur=[\d.]+, transfer;dur=[\d.]+, decode;dur=[\d.]+(, drafts;desc="\d+ of \d+")?$/,
      );

      const streamed = await stream(ref.url, "/v1/chat/completions", requestOf(dialogue));
      expectRecorded(streamed, dialogue);
      const story = streamed.comments.at(-1)!;
      expect(story).toContain(`x-margay-prefill: ${prefill.workerId}`);
      expect(story).toContain(`x-margay-decode: ${decode.workerId}`);
    },
  );

  test("the prompts were computed by P alone and came to D as KV", async () => {
    const received = await ref.metric(decode.healthUrl, "margay_kv_transfer_bytes_total");
    expect(sum(received)).toBeGreaterThan(0);
    expect(sum(await ref.metric(prefill.healthUrl, "margay_kv_transfer_bytes_total"))).toBe(sum(received));
    expect(sum(await ref.metric(prefill.healthUrl, "margay_prefill_tokens_total"))).toBeGreaterThan(0);
    expect(sum(await ref.metric(decode.healthUrl, "margay_prefill_tokens_total"))).toBe(0);
    expect(sum(await ref.metric(decode.healthUrl, "margay_decode_tokens_total"))).toBeGreaterThan(0);
    await expectNothingHeld(ref);
  });
});

test("cpu gives the answers of ref, up to ties closer than the rounding noise", async () => {
  const collect = async (system: System) => {
    const rows = [];
    for (const dialogue of dialogues) rows.push(await greedyRows(system.url, requestOf(dialogue)));
    return rows;
  };
  const { noise, usualNoise, largest, tokens, partings } = compareAnswers(await collect(ref), await collect(cpu));
  console.info(
    `cpu against ref: ${tokens} equal tokens, noise ${noise.toExponential(1)} (95 %: ${usualNoise.toExponential(1)}, largest ${largest.toExponential(1)})`,
    partings,
  );
  expect(noise).toBeGreaterThan(0);
  expect(usualNoise).toBeLessThan(0.06);
  for (const parting of partings) expect(parting.gap).toBeLessThan(noise);

  const differing = new Set(partings.map((parting) => parting.prompt));
  for (const [number, dialogue] of dialogues.entries()) {
    if (differing.has(number)) continue;
    expectRecorded(await unary(cpu.url, "/v1/chat/completions", requestOf(dialogue)), dialogue);
    expectRecorded(await stream(cpu.url, "/v1/chat/completions", requestOf(dialogue)), dialogue);
  }
  const cpuDecode = (await cpu.ready("decode", 1))[0]!;
  expect(sum(await cpu.metric(cpuDecode.healthUrl, "margay_kv_transfer_bytes_total"))).toBeGreaterThan(0);
  expect(sum(await cpu.metric(cpuDecode.healthUrl, "margay_prefill_tokens_total"))).toBe(0);
  await expectNothingHeld(cpu);
});
