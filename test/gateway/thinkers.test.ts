import { describe, expect, test } from "vitest";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import { MargayError } from "#protocol/errors.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { ChatCompletionResponse, ErrorResponse } from "../../control-plane/gateway/response-schema.ts";
import { Chorus, summaryMessages } from "../../control-plane/gateway/thinkers.ts";
import { FakeClock } from "../support/fake-clock.ts";
import type { FlowCall, FlowScript } from "../support/fake-flow.ts";
import { eventually, nanoModel, readStream, startHarness } from "../support/gateway-harness.ts";
import { KeysFile, keyFor, tenancyOf } from "../support/keys-file.ts";

const { tokenizer, contextLength } = await nanoModel();
const json = { "content-type": "application/json" };
const asking = (thinkers: number | string, more: Record<string, string> = {}) => ({
  headers: { ...json, ...more, "x-margay-thinkers": String(thinkers) },
});
const END = "</longcat_s>";
/** 1, 2, ... of a thinker; null: the summary. */
const thinkerOf = (call: FlowCall) => Number(/-t(\d+)$/.exec(call.request.requestId)?.[1] ?? 0) || null;
/** The prompt opens the reasoning, so an answer begins inside it. */
const said = (thought: string, answer: string) => tokenizer.encode(`${thought}</longcat_think>${answer}${END}`);
const promptOf = (call: FlowCall) => tokenizer.decode(call.request.generation.tokens);

const each =
  (thinker: (call: FlowCall, number: number) => ReturnType<FlowScript>): FlowScript =>
  async (call) => {
    const number = thinkerOf(call);
    if (number !== null) return await thinker(call, number);
    await call.stream(said("All agree.", "It is seven."));
    return {};
  };
const fine = async (call: FlowCall, number: number) => {
  await call.stream(said(`I am ${number}.`, `Answer ${number}`));
  return {};
};

test("K thinkers answer one prompt with seeds of their own, and what they answered is asked about once more", async () => {
  await using harness = await startHarness(each(fine));
  const response = await harness.chat({ seed: 5, response_format: { type: "json_object" } }, asking(3));
  expect(response.status).toBe(200);
  expect(response.headers.get("x-margay-thinkers")).toBe("3");
  const answer = ChatCompletionResponse.parse(await response.json());
  expect(answer.choices).toHaveLength(1);
  expect(answer.choices[0]!.message.content).toBe("It is seven.");
  expect(answer.choices[0]!.message.reasoning_content).toBe(
    "Thinker 1:\nI am 1.\n\nAnswer 1\n\nThinker 2:\nI am 2.\n\nAnswer 2\n\nThinker 3:\nI am 3.\n\nAnswer 3\n\nSumming up 3 of 3 answers.\n\nAll agree.",
  );
  const calls = harness.flow.calls;
  expect(calls.map(thinkerOf)).toEqual([1, 2, 3, null]);
  const generations = calls.map(({ request }) => request.generation);
  expect(new Set(generations.map(({ sampling }) => sampling.seed)).size).toBe(4);
  expect(generations.map(({ constraint }) => constraint !== null)).toEqual([false, false, false, true]);
  expect(new Set(calls.slice(0, 3).map(promptOf)).size).toBe(1);
  const asked = promptOf(calls[3]!);
  for (const number of [1, 2, 3]) expect(asked).toContain(`# ----- Thinker #${number} -----\nAnswer ${number}`);
  expect(asked).not.toContain("I am");
  const prompts = generations[0]!.promptLength + generations[3]!.promptLength;
  const tokens = calls.reduce((sum, { delivered }) => sum + delivered, 0);
  expect(answer.usage).toMatchObject({ prompt_tokens: prompts, completion_tokens: tokens });
  const ofAnswer = tokenizer.encode(`</longcat_think>It is seven.${END}`).length;
  expect(answer.usage!.completion_tokens_details!.reasoning_tokens).toBe(tokens - ofAnswer);
});

test("a stream tells thinkers in order as reasoning while they speak at once, then the summary as content", async () => {
  const release = Promise.withResolvers<void>();
  await using harness = await startHarness(
    each(async (call, number) => {
      if (number === 1) await call.orAborted(release.promise);
      else if (number === 2) setTimeout(release.resolve, 0);
      return await fine(call, number);
    }),
  );
  const body = { stream: true, stream_options: { include_usage: true } };
  const { events, done } = await readStream(await harness.chat(body, asking(2)));
  expect(done).toBe(true);
  type Event = {
    choices: { delta: { content?: string; reasoning_content?: string }; finish_reason: string | null }[];
    usage: { completion_tokens: number } | null;
  };
  const chunks = events as Event[];
  const deltas = chunks.flatMap(({ choices }) => choices.map(({ delta }) => delta));
  expect(deltas.map((delta) => delta.reasoning_content ?? "").join("")).toBe(
    "Thinker 1:\nI am 1.\n\nAnswer 1\n\nThinker 2:\nI am 2.\n\nAnswer 2\n\nSumming up 2 of 2 answers.\n\nAll agree.",
  );
  expect(deltas.map((delta) => delta.content ?? "").join("")).toBe("It is seven.");
  const firstContent = deltas.findIndex((delta) => (delta.content ?? "") !== "");
  expect(deltas.slice(firstContent).every((delta) => delta.reasoning_content === undefined)).toBe(true);
  expect(chunks.flatMap(({ choices }) => choices.flatMap((one) => one.finish_reason ?? []))).toEqual(["stop"]);
  const tokens = harness.flow.calls.reduce((sum, { delivered }) => sum + delivered, 0);
  expect(chunks.at(-1)!.usage!.completion_tokens).toBe(tokens);
});

describe("a thinker is left out", () => {
  const kept = async (script: FlowScript, count: number, body: object = {}) => {
    await using harness = await startHarness(script);
    const response = await harness.chat(body, asking(count));
    const listened = response.headers.get("x-margay-thinkers");
    return { status: response.status, listened, body: await response.json(), calls: harness.flow.calls };
  };

  test("that fails or is cut off, where another one ended", async () => {
    const script = each(async (call, number) => {
      if (number === 1) throw new MargayError("no_worker");
      await fine(call, number);
      return number === 2 ? { finish: "length" } : {};
    });
    const { status, listened, body, calls } = await kept(script, 3);
    expect([status, listened]).toEqual([200, "1"]);
    const asked = promptOf(calls.at(-1)!);
    expect(asked).toContain("Answer 3");
    expect(asked).not.toContain("Answer 2");
    const { usage } = ChatCompletionResponse.parse(body);
    expect(usage!.completion_tokens).toBe(calls.reduce((sum, { delivered }) => sum + delivered, 0));
  });

  test("unless all were cut off", async () => {
    const script = each(async (call, number) => ({ ...(await fine(call, number)), finish: "length" }));
    const { status, listened } = await kept(script, 2);
    expect([status, listened]).toEqual([200, "2"]);
  });

  test("whose answer is the longest, where all do not fit the context", async () => {
    const script = each(async (call, number) => {
      const words = "one two three ".repeat(number === 2 ? contextLength / 3 : 10);
      await call.stream(said("Well.", `Answer ${number} ${words}`), 4_096);
      return {};
    });
    const { status, listened, calls } = await kept(script, 3);
    expect([status, listened]).toEqual([200, "2"]);
    expect(promptOf(calls.at(-1)!)).not.toContain("Answer 2");
  });

  test("and where all fail, the first failure is the answer", async () => {
    const script = each(async () => {
      throw new MargayError("capacity_timeout", undefined, { retryAfterMs: 3_000 });
    });
    const { status, calls } = await kept(script, 2);
    expect(status).toBe(503);
    expect(calls).toHaveLength(2);
  });
});

test("thinkers have half of the request's time, the summary all of it", async () => {
  await using harness = await startHarness(each(fine));
  await harness.chat({}, asking(2));
  const [first, second, summary] = harness.flow.calls.map(({ request }) => request.deadlineMs);
  expect(first).toBe(second);
  expect(summary! - first!).toBe(30_000);
});

test("who leaves ends all thinkers, and no summary is asked for", async () => {
  await using harness = await startHarness(each(async (call) => await call.untilAborted()));
  const abort = new AbortController();
  const asked = harness.chat({ stream: true }, { ...asking(3), signal: abort.signal }).catch(() => null);
  await eventually(() => harness.flow.calls.length === 3);
  abort.abort();
  await asked;
  await eventually(() => harness.flow.calls.every(({ ended }) => ended));
  await eventually(async () => (await harness.metrics.text()).includes('outcome="cancelled"'));
  expect(harness.flow.calls).toHaveLength(3);
});

test("the tenant's ledger and limits count all thinkers and both prompts, each once", async () => {
  const acme = keyFor("acme", { admin: true });
  const limits = { tokensPerMinute: 60_000, inputTokensPerMinute: 60_000 };
  await using file = await KeysFile.with({ tenants: { acme: { limits } }, keys: [acme.line] });
  // Buckets that no time fills.
  const bus = new MemoryNetwork(systemClock, systemRandom).connect("control-plane");
  const tenancy = await tenancyOf(file, { bus, clock: new FakeClock(Date.now()) });
  await using harness = await startHarness(
    each(async (call, number) => {
      if (number === 1) throw new MargayError("no_worker");
      return await fine(call, number);
    }),
    { tenancy },
  );
  const authorization = { authorization: `Bearer ${acme.key}` };
  const left = async () => {
    const { headers } = await harness.chat({}, { headers: { ...json, ...authorization } });
    return Number(headers.get("x-ratelimit-remaining-tokens"));
  };
  const plain = await left();
  const response = await harness.chat({}, asking(3, authorization));
  const { usage } = ChatCompletionResponse.parse(await response.json());
  const drop = plain - (await left());
  type Row = { requests: number; input_tokens: number; output_tokens: number; output_reasoning_tokens?: number };
  const row = async () => {
    const answer = await fetch(`${harness.url}/v1/usage`, { headers: authorization });
    return ((await answer.json()) as { data: Row[] }).data[0];
  };
  await eventually(async () => (await row())?.requests === 3);
  const used = (await row())!;
  const ofPlain = harness.flow.calls.filter((_, i, all) => i === 0 || i === all.length - 1);
  const input = ofPlain.reduce((sum, { request }) => sum + request.generation.promptLength, 0);
  const output = ofPlain.reduce((sum, { delivered }) => sum + delivered, 0);
  expect(drop).toBe(usage!.total_tokens + (input + output) / 2);
  expect(used.input_tokens - input).toBe(usage!.prompt_tokens);
  expect(used.output_tokens - output).toBe(usage!.completion_tokens);
});

test("what is no number of thinkers, other endpoints and several choices are refused by name", async () => {
  await using harness = await startHarness(each(fine));
  for (const value of ["0", "5", "-1", "2.5", "many", ""]) {
    const response = await harness.chat({}, asking(value));
    expect(response.status, value).toBe(400);
    const { error } = ErrorResponse.parse(await response.json());
    expect(error.param).toBe("x-margay-thinkers");
    expect(error.message).toContain("from 1 to 4");
  }
  const several = ErrorResponse.parse(await (await harness.chat({ n: 2 }, asking(2))).json());
  expect(several.error.param).toBe("n");
  const prompt = { model: "nano", prompt: "Hi" };
  const messages = [{ role: "user", content: "Hi" }];
  for (const [path, body] of [
    ["/v1/completions", prompt],
    ["/v1/messages", { model: "nano", max_tokens: 5, messages }],
    ["/v1/responses", { model: "nano", input: "Hi" }],
  ] as const) {
    const response = await harness.post(path, body, asking(2));
    expect(response.status, path).toBe(400);
    expect(await response.text()).toContain("x-margay-thinkers must be left out");
  }
  expect(harness.flow.calls).toHaveLength(0);
});

test("the chorus tells each voice whole and in order, however they speak", () => {
  for (let seed = 1; seed <= 50; seed++) {
    let state = seed;
    const below = (most: number) => {
      state = (state * 48_271) % 2_147_483_647;
      return state % most;
    };
    const count = 1 + below(4);
    const lines = Array.from({ length: count }, (_, i) => [...`${i}${"abcdefgh".slice(0, below(8))}`]);
    let told = "";
    const chorus = new Chorus(count, (text) => {
      told += text;
      return text;
    });
    const open = lines.map((letters, index) => ({ index, letters: [...letters] }));
    while (open.length > 0) {
      const at = below(open.length);
      const voice = open[at]!;
      const letter = voice.letters.shift();
      if (letter !== undefined) chorus.say(voice.index, letter);
      else {
        chorus.end(voice.index);
        open.splice(at, 1);
      }
    }
    expect(told).toBe(lines.flat().join(""));
  }
});

test("the summary's conversation keeps what went before, and asks about a tool's result behind it", () => {
  const system = { role: "system", content: "Be brief." };
  const parts = {
    role: "user",
    content: [
      { type: "text", text: "What is " },
      { type: "text", text: "3 + 4?" },
    ],
  };
  const [kept, asked, none] = summaryMessages([system, parts], ["seven"]);
  expect([kept, none]).toEqual([system, undefined]);
  expect(asked!.content).toContain("====== Problem ======\nWhat is 3 + 4?\n");
  const result = { role: "tool", content: "7" };
  const behind = summaryMessages([system, parts, result], ["seven"]);
  expect(behind.slice(0, 3)).toEqual([system, parts, result]);
  expect(behind).toHaveLength(4);
});
