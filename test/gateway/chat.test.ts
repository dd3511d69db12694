import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import type { Logprobs } from "#protocol/request.ts";
import { ChatChunkResponse, ChatCompletionResponse } from "../../control-plane/gateway/response-schema.ts";
import { answering, type FlowScript } from "../support/fake-flow.ts";
import { nanoModel, readStream, startHarness } from "../support/gateway-harness.ts";

interface Dialogue {
  readonly messages: readonly object[];
  readonly tools: readonly object[] | null;
  readonly enable_thinking: boolean | null;
  readonly prompt: string;
  readonly greedy: string;
}
const dialogues: Dialogue[] = JSON.parse(
  readFileSync(new URL("../../models/nano/dialogues.json", import.meta.url), "utf8"),
);
const { tokenizer } = await nanoModel();

/** Answers each request with `text`, `step` tokens at a time. */
const saying = (text: string, step = 1, settled = {}) => answering(tokenizer.encode(text), step, settled);

interface Gathered {
  readonly content: string;
  readonly reasoning: string;
  readonly calls: { id: string; name: string; arguments: string }[];
  readonly finish: string | null;
}

/** Puts a streamed answer together as a strict client does. */
function gather(events: readonly unknown[], index = 0): Gathered {
  let [content, reasoning, finish] = ["", "", null as string | null];
  const calls: Gathered["calls"] = [];
  let begun = false;
  for (const event of events) {
    const chunk = ChatChunkResponse.parse(event);
    const choice = chunk.choices.find((one) => one.index === index);
    if (choice === undefined) continue;
    expect(finish).toBeNull();
    expect(choice.delta.role).toBe(begun ? undefined : "assistant");
    begun = true;
    content += choice.delta.content ?? "";
    reasoning += choice.delta.reasoning_content ?? "";
    for (const { index: at, id, type, function: piece } of choice.delta.tool_calls ?? []) {
      if (calls[at] === undefined) {
        expect(at).toBe(calls.length);
        expect(type).toBe("function");
        calls.push({ id: id!, name: piece.name!, arguments: piece.arguments });
      } else {
        expect([id, type, piece.name]).toEqual([undefined, undefined, undefined]);
        calls[at].arguments += piece.arguments;
      }
    }
    finish = choice.finish_reason;
  }
  return { content, reasoning, calls, finish };
}

describe("dialogues of the bundled model", () => {
  test.each(dialogues.map((dialogue, index) => [index, dialogue] as const))(
    "%i: streamed and unary answers say the same, whatever the steps",
    async (_index, { messages, tools, enable_thinking, prompt, greedy }) => {
      const settled = { cachedTokens: 3 };
      await using harness = await startHarness(saying(greedy, 1, settled));
      const body = { messages, ...(tools ? { tools } : {}), ...(enable_thinking === null ? {} : { enable_thinking }) };

      const unary = await harness.chat(body);
      expect(unary.status).toBe(200);
      const answer = ChatCompletionResponse.parse(await unary.json());
      const choice = answer.choices[0]!;
      const completion = tokenizer.encode(greedy).length;
      const promptTokens = tokenizer.encode(prompt).length;
      expect(harness.flow.calls[0]!.request.generation.tokens).toEqual(tokenizer.encode(prompt));
      expect(answer.usage).toMatchObject({
        prompt_tokens: promptTokens,
        completion_tokens: completion,
        total_tokens: promptTokens + completion,
        prompt_tokens_details: { cached_tokens: 3 },
      });

      for (const step of [1, 3, 1000]) {
        harness.flow.script = saying(greedy, step, settled);
        const streamed = await harness.chat({ ...body, stream: true, stream_options: { include_usage: true } });
        const { events, done } = await readStream(streamed);
        expect(done).toBe(true);
        const last = ChatChunkResponse.parse(events.at(-1));
        expect(last).toMatchObject({ choices: [], usage: answer.usage });
        expect(events.slice(0, -1).every((event) => ChatChunkResponse.parse(event).usage === null)).toBe(true);
        const gathered = gather(events);
        expect(gathered.content).toBe(choice.message.content ?? "");
        expect(gathered.reasoning).toBe(choice.message.reasoning_content ?? "");
        expect(gathered.finish).toBe(choice.finish_reason);
        const calls = (choice.message.tool_calls ?? []).map((call) => call.function);
        expect(gathered.calls.map(({ name, arguments: args }) => ({ name, arguments: args }))).toEqual(calls);
        expect(new Set(gathered.calls.map((one) => one.id)).size).toBe(calls.length);
      }
    },
  );

  test("reasoning, content and tool calls are told apart", async () => {
    const answers = await Promise.all(
      dialogues.map(async ({ messages, tools, enable_thinking, greedy }) => {
        await using harness = await startHarness(saying(greedy));
        const kwargs = { chat_template_kwargs: { enable_thinking } };
        const response = await harness.chat({ messages, ...(tools ? { tools } : {}), ...kwargs });
        return ChatCompletionResponse.parse(await response.json()).choices[0]!;
      }),
    );
    expect(answers[0]!.message).toEqual({
      role: "assistant",
      content: "The capital of Japan is Tokyo.",
      refusal: null,
    });
    expect(answers[1]!.message).toMatchObject({
      reasoning_content: "Ones: 7 + 6 = 11. Tens: 40 + 30 = 70. Sum: 70 + 11 = 71.",
      content: "47 + 38 = 71.",
    });
    const weather = answers[6]!;
    expect(weather.finish_reason).toBe("tool_calls");
    expect(weather.message).toMatchObject({ content: null, reasoning_content: "I should call get_weather." });
    const [call] = weather.message.tool_calls!;
    expect(call!.function.name).toBe("get_weather");
    expect(JSON.parse(call!.function.arguments)).toEqual({ city: "Rome" });
  });
});

describe("the shape of a stream", () => {
  test("without include_usage no chunk speaks of usage", async () => {
    await using harness = await startHarness(saying("Tokyo.</longcat_s>"));
    const { events, done } = await readStream(await harness.chat({ stream: true }));
    expect(done).toBe(true);
    expect(events.every((event) => !("usage" in (event as object)))).toBe(true);
    expect(new Set(events.map((event) => (event as { id: string }).id)).size).toBe(1);
    expect(gather(events)).toMatchObject({ content: "Tokyo.", finish: "stop" });
  });

  test("headers tell what is known at the first byte, a last comment the rest", async () => {
    await using harness = await startHarness(saying("Tokyo.</longcat_s>"));
    const response = await harness.chat({ stream: true }, {});
    expect(response.headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
    expect(response.headers.get("x-margay-prefill")).toBe("p-1");
    expect(response.headers.get("x-margay-decode")).toBe("d-1");
    expect(response.headers.get("server-timing")).toBe("queue;dur=5.00");
    const requestId = response.headers.get("x-request-id");
    const { comments, events } = await readStream(response);
    expect((events[0] as { id: string }).id).toBe(`chatcmpl-${requestId}`);
    expect(harness.flow.calls[0]!.request.requestId).toBe(requestId);
    expect(comments).toEqual([
      "x-margay-prefill: p-1 | x-margay-decode: d-1 | server-timing: queue;dur=1.00, prefill;dur=2.00, transfer;dur=3.00, decode;dur=4.00",
    ]);
  });

  test("a unary answer tells it all in headers", async () => {
    await using harness = await startHarness(saying("Tokyo.</longcat_s>"));
    const response = await harness.chat(
      {},
      {
        headers: { "content-type": "application/json", "x-request-id": "mine" },
      },
    );
    expect(response.headers.get("x-margay-prefill")).toBe("p-1");
    expect(response.headers.get("x-margay-decode")).toBe("d-1");
    expect(response.headers.get("server-timing")).toBe(
      "queue;dur=1.00, prefill;dur=2.00, transfer;dur=3.00, decode;dur=4.00",
    );
    expect(response.headers.get("x-request-id")).toMatch(/^req_/);
    expect(response.headers.get("x-client-request-id")).toBe("mine");
  });

  test("where drafts were verified, how many became tokens is told as well", async () => {
    await using harness = await startHarness(
      saying("Tokyo.</longcat_s>", 1, { drafts: { verified: 44, accepted: 41 } }),
    );
    const timing = (await harness.chat()).headers.get("server-timing");
    expect(timing).toMatch(/, decode;dur=4.00, drafts;desc="41 of 44"$/);
  });

  test("a prompt that its decode worker computed names that worker twice", async () => {
    await using harness = await startHarness(saying("Tokyo.</longcat_s>", 1, { prefill: null }));
    const response = await harness.chat();
    expect(response.headers.get("x-margay-prefill")).toBe("d-1");
  });

  test("an answer cut by its length says so", async () => {
    await using harness = await startHarness(saying("Tokyo is", 1, { finish: "length" }));
    expect(gather((await readStream(await harness.chat({ stream: true }))).events).finish).toBe("length");
    expect(ChatCompletionResponse.parse(await (await harness.chat()).json()).choices[0]!.finish_reason).toBe("length");
  });

  test("an answer without any token still begins and ends", async () => {
    await using harness = await startHarness(saying("</longcat_s>"));
    const { events } = await readStream(await harness.chat({ stream: true }));
    expect(gather(events)).toEqual({ content: "", reasoning: "", calls: [], finish: "stop" });
    expect(ChatCompletionResponse.parse(await (await harness.chat()).json()).choices[0]!.message.content).toBe("");
  });
});

describe("stop strings", () => {
  test.each([1, 2, 50])("cut the answer and end the request early (%i tokens at a time)", async (step) => {
    const text = "Once upon a time there was a hungry fox named Li. Every morning Li walked through the lake.";
    await using harness = await startHarness(saying(text, step));
    const stop = ["hungry fox", "never"];
    const { events } = await readStream(await harness.chat({ stream: true, stop }));
    expect(gather(events)).toMatchObject({ content: "Once upon a time there was a ", finish: "stop" });
    const unary = ChatCompletionResponse.parse(await (await harness.chat({ stop: "hungry fox" })).json());
    expect(unary.choices[0]!.message.content).toBe("Once upon a time there was a ");
    for (const call of harness.flow.calls) expect(call.verdict).toBe("enough");
    if (step === 1) expect(harness.flow.calls[0]!.delivered).toBeLessThan(tokenizer.encode(text).length);
  });
});

describe("several choices", () => {
  const words = ["alpha.", "beta and more.", "gamma!"];
  const each: FlowScript = async (call, index) => {
    call.progress("placed");
    await call.stream(tokenizer.encode(words[index % 3]!));
    return { cachedTokens: index % 3 === 0 ? 2 : 7 };
  };

  test("are made side by side from one prompt, with seeds of their own", async () => {
    await using harness = await startHarness(each);
    const response = await harness.chat({ n: 3, seed: 11 });
    const answer = ChatCompletionResponse.parse(await response.json());
    expect(answer.choices.map((choice) => [choice.index, choice.message.content])).toEqual(words.map((w, i) => [i, w]));
    const requests = harness.flow.calls.map((call) => call.request);
    const seeds = requests.map((request) => request.generation.sampling.seed);
    expect(seeds[0]).toBe(11);
    expect(new Set(seeds).size).toBe(3);
    expect(new Set(requests.map((request) => request.requestId)).size).toBe(3);
    const total = words.reduce((sum, word) => sum + tokenizer.encode(word).length, 0);
    expect(answer.usage).toMatchObject({
      prompt_tokens: requests[0]!.generation.promptLength,
      completion_tokens: total,
      prompt_tokens_details: { cached_tokens: 2 },
    });
    await (await harness.chat({ n: 3, seed: 11 })).text();
    expect(harness.flow.calls.slice(3).map((call) => call.request.generation.sampling.seed)).toEqual(seeds);
  });

  test("are interleaved in a stream, each whole", async () => {
    await using harness = await startHarness(each);
    const { events } = await readStream(await harness.chat({ n: 3, stream: true }));
    for (const [index, word] of words.entries()) {
      expect(gather(events, index)).toMatchObject({ content: word, finish: "stop" });
    }
  });
});

describe("log-probabilities", () => {
  const text = "Tōkyō!</longcat_s>";
  const ids = tokenizer.encode(text);
  /** Two alternatives per token: the token itself and token 100. */
  const rows = (from: number, to: number): Logprobs => ({
    chosen: Float32Array.from({ length: to - from }, (_, i) => -0.5 - (from + i)),
    width: 2,
    ids: Int32Array.from({ length: 2 * (to - from) }, (_, k) => (k % 2 === 0 ? ids[from + (k >> 1)]! : 100)),
    values: Float32Array.from({ length: 2 * (to - from) }, (_, k) => (k % 2 === 0 ? -0.5 : Number.NEGATIVE_INFINITY)),
  });
  const script: FlowScript = async (call) => {
    for (let i = 0; i < ids.length; i++) call.tokens([ids[i]!], rows(i, i + 1));
    return undefined;
  };

  test("every token but the ending one has its row, and the bytes are those of the text", async () => {
    await using harness = await startHarness(script);
    const answer = ChatCompletionResponse.parse(await (await harness.chat({ logprobs: true, top_logprobs: 2 })).json());
    expect(harness.flow.calls[0]!.request.generation.sampling.topLogprobs).toBe(2);
    const content = answer.choices[0]!.logprobs!.content;
    expect(content).toHaveLength(ids.length - 1);
    expect(Buffer.from(content.flatMap((row) => row.bytes)).toString()).toBe("Tōkyō!");
    expect(content.map((row) => row.logprob)).toEqual(content.map((_, i) => -0.5 - i));
    for (const row of content) {
      expect(row.top_logprobs.map((one) => one.logprob)).toEqual([-0.5, -9999]);
      expect(row.top_logprobs[0]!.token).toBe(row.token);
    }
  });

  test("a stream carries the same rows, none lost where text is held back", async () => {
    await using harness = await startHarness(script);
    const unary = ChatCompletionResponse.parse(await (await harness.chat({ logprobs: true, top_logprobs: 2 })).json());
    const { events } = await readStream(await harness.chat({ logprobs: true, top_logprobs: 2, stream: true }));
    const streamed = events.flatMap((event) => ChatChunkResponse.parse(event).choices[0]!.logprobs?.content ?? []);
    expect(streamed).toEqual(unary.choices[0]!.logprobs!.content);
  });

  test("are not asked of the engine unless the client asks", async () => {
    await using harness = await startHarness(answering([100]));
    const answer = ChatCompletionResponse.parse(await (await harness.chat()).json());
    expect(answer.choices[0]!.logprobs).toBeNull();
    expect(harness.flow.calls[0]!.request.generation.sampling.topLogprobs).toBe(-1);
  });
});

describe("thinking", () => {
  const promptOf = async (body: object) => {
    await using harness = await startHarness(answering([100]));
    expect((await harness.chat(body)).status).toBe(200);
    return tokenizer.decode(harness.flow.calls[0]!.request.generation.tokens);
  };
  test.each([
    [{}, "<longcat_assistant>"],
    [{ enable_thinking: true }, " /think_on <longcat_assistant><longcat_think>\n"],
    [{ enable_thinking: false }, " /think_off <longcat_assistant>"],
    [{ reasoning_effort: "none" }, " /think_off <longcat_assistant>"],
    [{ reasoning_effort: "minimal" }, " /think_off <longcat_assistant>"],
    [{ reasoning_effort: "high" }, " /think_on <longcat_assistant><longcat_think>\n"],
    [{ reasoning_effort: "high", enable_thinking: false }, " /think_off <longcat_assistant>"],
    [{ enable_thinking: true, chat_template_kwargs: { enable_thinking: false } }, " /think_off <longcat_assistant>"],
  ])("%j", async (body, ending) => {
    expect(await promptOf(body)).toBe(`<longcat_user>Hi${ending}`);
  });

  test("tool_choice none hides the tools", async () => {
    const tools = [{ type: "function", function: { name: "f" } }];
    expect(await promptOf({ tools, tool_choice: "none" })).toBe("<longcat_user>Hi<longcat_assistant>");
    expect(await promptOf({ tools })).toContain("### Tool name: f");
  });
});
