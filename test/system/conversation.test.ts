import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { RankStatus } from "#protocol/operator.ts";
import { renderChat } from "../../control-plane/chat/prompt.ts";
import { unary } from "../support/client.ts";
import { nanoModel } from "../support/dialogues.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { type System, startSystem } from "../support/system.ts";

/** One conversation through gateway, bus, prefill process, transfer and decode process: what each turn computes and moves. */

const model = await nanoModel();

interface Message {
  readonly role: "user" | "assistant";
  readonly content: string;
}

/** What a turn added to the counters of both workers, and what the template made of it. */
interface Turn {
  readonly prompt: Int32Array;
  /** Leading tokens of the prompt that the turn before held: its prompt, and its answer as the template renders it. */
  readonly earlier: number;
  /** Of those, what P computed or found: the prompt of the turn before. */
  readonly earlierOnPrefill: number;
  readonly prefill: { readonly hits: number; readonly computed: number };
  readonly decode: { readonly hits: number; readonly computed: number; readonly bytes: number };
}

const questions = [
  "My name is Clara.",
  "Tell me a story about a fox.",
  "Who are you?",
  "What is the capital of Japan?",
  "Tell me a story about a cat.",
  "What is my name?",
];
const turns: Turn[] = [];

let system: System;
let prefill: RankStatus;
let decode: RankStatus;
let rowBytes: number;

const tokensOf = (messages: readonly Message[]) =>
  renderChat(model, messages, { tools: null, templateKwargs: {} }).tokens;

function sharedTokens(a: Int32Array, b: Int32Array): number {
  let count = 0;
  while (count < a.length && a[count] === b[count]) count++;
  return count;
}

async function counter(rank: RankStatus, name: string): Promise<number> {
  const samples = await system.metric(rank.healthUrl, name);
  return [...samples.values()].reduce((sum, value) => sum + value, 0);
}

async function counters() {
  const of = async (rank: RankStatus) => ({
    hits: await counter(rank, "margay_prefix_cached_tokens_total"),
    computed: await counter(rank, "margay_prefill_tokens_total"),
    bytes: await counter(rank, "margay_kv_transfer_bytes_total"),
  });
  return { prefill: await of(prefill), decode: await of(decode) };
}

beforeAll(async () => {
  system = await startSystem({ MARGAY_BACKEND: "ref" });
  prefill = (await system.ready("prefill", 1))[0]!;
  decode = (await system.ready("decode", 1))[0]!;
  const messages: Message[] = [];
  let [before, past] = [new Int32Array(), new Int32Array()];
  for (const content of questions) {
    messages.push({ role: "user", content });
    const prompt = tokensOf(messages);
    const then = await counters();
    const body = { model: "nano", messages, temperature: 0, max_tokens: 200 };
    const answer = await unary(system.url, "/v1/chat/completions", body);
    expect(answer.error).toBeNull();
    expect([answer.finish, answer.reasoning]).toEqual(["stop", ""]);
    const now = await counters();
    const grown = (role: "prefill" | "decode") => ({
      hits: now[role].hits - then[role].hits,
      computed: now[role].computed - then[role].computed,
      bytes: now[role].bytes - then[role].bytes,
    });
    turns.push({
      prompt,
      earlier: sharedTokens(prompt, past),
      earlierOnPrefill: sharedTokens(prompt, before),
      prefill: grown("prefill"),
      decode: grown("decode"),
    });
    messages.push({ role: "assistant", content: answer.content });
    // The template closes an answer that another question follows: two tags for that are not of the past.
    past = tokensOf([...messages, { role: "user", content: "" }]).slice(0, -2);
    before = prompt;
  }
  rowBytes = turns[0]!.decode.bytes / turns[0]!.prompt.length;
}, 120_000);

afterAll(async () => {
  expect(await system.stop()).toBe(0);
});

describe("a conversation of six turns", () => {
  const later = questions.map((_, index) => index).slice(1);

  test("the first turn is computed by P and moved to D as a whole", () => {
    const [first] = turns;
    expect(first!.prefill).toMatchObject({ hits: 0, computed: first!.prompt.length });
    expect(first!.decode).toMatchObject({ hits: 0, computed: 0 });
    expect(Number.isInteger(rowBytes)).toBe(true);
  });

  test.each(later)("turn %i goes on from what was said before", (index) => {
    // Else the shares below would be shares of little.
    expect(turns[index]!.earlier).toBeGreaterThan(turns[index - 1]!.prompt.length);
  });

  test.each(later)("in turn %i at least nine tenths of the earlier tokens are hits on D", (index) => {
    const { decode, earlier } = turns[index]!;
    expect(decode.hits / earlier).toBeGreaterThanOrEqual(0.9);
  });

  test.each(later)("in turn %i at least nine tenths of the earlier tokens that P prefilled are hits on P", (index) => {
    const { prefill, earlierOnPrefill } = turns[index]!;
    expect(prefill.hits / earlierOnPrefill).toBeGreaterThanOrEqual(0.9);
  });

  test.each(later)("in turn %i only rows that D lacks move, and P computes only those it lacks", (index) => {
    const { prompt, prefill, decode } = turns[index]!;
    expect(decode.bytes).toBe((prompt.length - decode.hits) * rowBytes);
    expect(prefill.computed).toBe(prompt.length - prefill.hits);
    expect(decode.computed).toBe(0);
  });

  test("nothing is held when it is over", async () => {
    await expectNothingHeld(system);
  });
});
