import Anthropic from "@anthropic-ai/sdk";
import { afterEach, describe, expect, test } from "vitest";
import { MargayError } from "#protocol/errors.ts";
import { MessageErrorResponse, MessageResponse } from "../../control-plane/gateway/response-schema.ts";
import { answering, type FlowScript } from "../support/fake-flow.ts";
import { type Harness, nanoModel, startHarness } from "../support/gateway-harness.ts";

/** Anthropic's Messages API, by its official client. */

const { tokenizer } = await nanoModel();
const END = 2;
const saying = (text: string, step = 1, settled = {}) => answering([...tokenizer.encode(text), END], step, settled);

let harness: Harness | null = null;
afterEach(async () => {
  await harness?.[Symbol.asyncDispose]();
  harness = null;
});

async function clientOf(script: FlowScript): Promise<Anthropic> {
  harness = await startHarness(script);
  return new Anthropic({ baseURL: harness.gateway.url, apiKey: "none", maxRetries: 0 });
}

const promptText = () => tokenizer.decode(harness!.flow.calls[0]!.request.generation.tokens);
const HI = { model: "nano", max_tokens: 50, messages: [{ role: "user" as const, content: "Hi" }] };
const WEATHER = {
  name: "get_weather",
  description: "Weather of a city.",
  input_schema: { type: "object" as const, properties: { city: { type: "string" } }, required: ["city"] },
};
const CALL =
  "<longcat_think>\nI look.\n</longcat_think>\nLet me see.<longcat_tool_call>get_weather\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>Rome</longcat_arg_value>\n</longcat_tool_call>";

describe("a message", () => {
  test("has text, a reason to end and usage, cached tokens apart", async () => {
    const client = await clientOf(saying("Hello there.", 1, { cachedTokens: 1 }));
    const message = await client.messages.create({ ...HI, system: "Be kind." });
    expect(MessageResponse.parse(JSON.parse(JSON.stringify(message)))).toBeTruthy();
    expect(message).toMatchObject({
      role: "assistant",
      content: [{ type: "text", text: "Hello there." }],
      stop_reason: "end_turn",
      stop_sequence: null,
      usage: { cache_read_input_tokens: 1 },
    });
    expect(promptText()).toBe("<longcat_system>Be kind.<longcat_user>Hi<longcat_assistant>");
    expect(message.usage.input_tokens).toBe(tokenizer.encode(promptText()).length - 1);
    expect(message._request_id).toMatch(/^req_/);
  });

  test("has thinking, text and calls as blocks in their order", async () => {
    const client = await clientOf(saying(CALL));
    const message = await client.messages.create({ ...HI, tools: [WEATHER], thinking: { type: "adaptive" } });
    expect(message.stop_reason).toBe("tool_use");
    expect(message.content).toEqual([
      { type: "thinking", thinking: "I look.", signature: "" },
      { type: "text", text: "Let me see.", citations: null },
      {
        ...{ type: "tool_use", id: expect.stringMatching(/^toolu_/), name: "get_weather", input: { city: "Rome" } },
        caller: { type: "direct" },
      },
    ]);
  });

  test("says which stop sequence ended it, and that it was cut", async () => {
    const client = await clientOf(saying("One, two, three."));
    expect(await client.messages.create({ ...HI, stop_sequences: ["x", ", three"] })).toMatchObject({
      ...{ content: [{ type: "text", text: "One, two" }], stop_reason: "stop_sequence", stop_sequence: ", three" },
    });
    await harness![Symbol.asyncDispose]();
    const cut = await clientOf(saying("One", 1, { finish: "length" }));
    expect(await cut.messages.create(HI)).toMatchObject({ stop_reason: "max_tokens", stop_sequence: null });
  });
});

describe("a stream", () => {
  test.each([1, 3, 1_000])("of %i tokens a step is put together to the same message", async (step) => {
    const client = await clientOf(saying(CALL, step, { cachedTokens: 2 }));
    const stream = client.messages.stream({ ...HI, tools: [WEATHER] });
    const seen: string[] = [];
    stream.on("streamEvent", (event) => void seen.push(event.type));
    const message = await stream.finalMessage();
    expect(message.content).toEqual([
      { type: "thinking", thinking: "I look.", signature: "" },
      { type: "text", text: "Let me see.", citations: null },
      {
        ...{ type: "tool_use", id: expect.stringMatching(/^toolu_/), name: "get_weather", input: { city: "Rome" } },
        caller: { type: "direct" },
      },
    ]);
    expect(message).toMatchObject({ stop_reason: "tool_use", usage: { cache_read_input_tokens: 2 } });
    expect(seen[0]).toBe("message_start");
    expect(seen.slice(-2)).toEqual(["message_delta", "message_stop"]);
    expect(seen.filter((type) => type === "content_block_start")).toHaveLength(3);
    expect(seen.filter((type) => type === "content_block_stop")).toHaveLength(3);
  });

  test("that fails on its way tells an error event", async () => {
    const client = await clientOf(async (call) => {
      await call.stream(tokenizer.encode("Once upon"));
      throw new MargayError("no_worker", "No worker is left.");
    });
    const stream = client.messages.stream(HI);
    await expect(stream.finalMessage()).rejects.toThrow(/No worker is left/);
  });
});

describe("a conversation", () => {
  test("of calls and results becomes the template's", async () => {
    const client = await clientOf(saying("It is sunny."));
    await client.messages.create({
      ...{ ...HI, tools: [WEATHER], system: [{ type: "text", text: "Short.", cache_control: { type: "ephemeral" } }] },
      messages: [
        { role: "user", content: "Weather?" },
        {
          role: "assistant",
          content: [
            { type: "thinking", thinking: "hm", signature: "s" },
            { type: "text", text: "I ask.", citations: null },
            {
              ...{ type: "tool_use", id: "toolu_1", name: "get_weather", input: { city: "Rome" } },
              caller: { type: "direct" },
            },
          ],
        },
        {
          role: "user",
          content: [
            { type: "tool_result", tool_use_id: "toolu_1", content: [{ type: "text", text: "sunny" }] },
            { type: "text", text: "And?" },
          ],
        },
      ],
    });
    const text = promptText();
    expect(text).toContain("<longcat_system>Short.");
    expect(text).toContain("I ask.<longcat_tool_call>get_weather\n<longcat_arg_key>city</longcat_arg_key>");
    expect(text).toContain("<longcat_tool_response>get_weather\nsunny</longcat_tool_response><longcat_user>And?");
  });

  test("is counted as it is computed", async () => {
    const client = await clientOf(saying("x"));
    const { input_tokens } = await client.messages.countTokens({ model: "nano", messages: HI.messages });
    expect(input_tokens).toBe(tokenizer.encode("<longcat_user>Hi<longcat_assistant>").length);
  });

  test.each([
    [{ type: "enabled", budget_tokens: 1_024 }, " /think_on <longcat_assistant><longcat_think>\n"],
    [{ type: "disabled" }, " /think_off <longcat_assistant>"],
  ] as const)("with thinking %j ends with %j", async (thinking, ending) => {
    const client = await clientOf(saying("x"));
    await client.messages.create({ ...HI, max_tokens: 1_100, thinking });
    expect(promptText().endsWith(ending)).toBe(true);
  });
});

test("a choice of tools binds the answer", async () => {
  const client = await clientOf(saying("x"));
  const constraint = async (tool_choice: Anthropic.ToolChoice) => {
    await client.messages.create({ ...HI, tools: [WEATHER], tool_choice });
    return harness!.flow.calls.at(-1)!.request.generation.constraint;
  };
  expect(await constraint({ type: "auto" })).toBeNull();
  expect(await constraint({ type: "none" })).toBeNull();
  const open = tokenizer.markers.ids.get("<longcat_tool_call>")!;
  expect((await constraint({ type: "any" }))!.prefix).toEqual(Int32Array.of(open));
  expect((await constraint({ type: "tool", name: "get_weather" }))!.grammar.text).toContain("get_weather");
});

describe("what is refused has Anthropic's form", () => {
  test.each([
    [{ max_tokens: undefined }, /^max_tokens is required/],
    [{ messages: [] }, /^messages must hold at least one/],
    [{ messages: [{ role: "user", content: [{ type: "image", source: {} }] }] }, /others are not supported/],
    [{ messages: [{ role: "system", content: "x" }] }, /"user" or "assistant"/],
    [{ messages: [...HI.messages, { role: "assistant", content: "So" }] }, /must not end with the assistant/],
    [
      { messages: [{ role: "user", content: [{ type: "tool_result", tool_use_id: "t" }] }] },
      /^messages\[0\]\.content\[0\]\.tool_use_id must be the id/,
    ],
    [{ temperature: 1.5 }, /^temperature must be a number from 0 to 1/],
    [{ tools: [{ name: "a b", input_schema: {} }] }, /^tools\[0\]\.name/],
    [{ tools: [{ type: "web_search_20250305", name: "web_search" }] }, /^tools\[0\]\.type must be "custom"/],
    [{ tool_choice: { type: "any" } }, /without tools/],
    [{ stop_sequences: [""] }, /^stop_sequences/],
    [{ thinking: { type: "deep" } }, /^thinking/],
    [{ max_tokens: 10_000_000 }, /^max_tokens must be at most/],
  ])("%j", async (changes, sentence) => {
    await clientOf(saying("x"));
    const response = await harness!.post("/v1/messages", { ...HI, ...changes });
    expect(response.status).toBe(400);
    const body = MessageErrorResponse.parse(await response.json());
    expect(body.error.type).toBe("invalid_request_error");
    expect(body.error.message).toMatch(sentence);
    expect(harness!.flow.calls).toEqual([]);
  });

  test("an unknown model, a full queue, a server without workers", async () => {
    const client = await clientOf(async () => {
      throw new MargayError("queue_full", "Full.", { retryAfterMs: 3_000 });
    });
    await expect(client.messages.create({ ...HI, model: "other" })).rejects.toBeInstanceOf(Anthropic.NotFoundError);
    await expect(client.messages.create(HI)).rejects.toBeInstanceOf(Anthropic.RateLimitError);
    await harness![Symbol.asyncDispose]();
    const none = await clientOf(async () => {
      throw new MargayError("no_worker", "None.");
    });
    const error = await none.messages.create(HI).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ status: 503, error: { error: { type: "overloaded_error" } } });
  });

  test("a method that isn't there, a body that is no JSON", async () => {
    await clientOf(saying("x"));
    const get = await fetch(`${harness!.gateway.url}/v1/messages`);
    expect([get.status, get.headers.get("allow")]).toEqual([405, "POST, OPTIONS"]);
    const broken = await harness!.post("/v1/messages", "{");
    expect(broken.status).toBe(400);
    expect(MessageErrorResponse.safeParse(await broken.json()).success).toBe(true);
  });
});

test("a client that leaves ends the request", async () => {
  const left = Promise.withResolvers<void>();
  const client = await clientOf(async (call) => {
    try {
      await call.stream(tokenizer.encode("Once upon a time"));
      return await call.untilAborted();
    } finally {
      left.resolve();
    }
  });
  const stream = client.messages.stream(HI);
  stream.on("text", () => stream.abort());
  await expect(stream.finalMessage()).rejects.toBeInstanceOf(Anthropic.APIUserAbortError);
  await left.promise;
});
