import OpenAI from "openai";
import { describe, expect, test } from "vitest";
import { ResponseResponse, ResponseStreamEvent } from "../../control-plane/gateway/responses/shapes.ts";
import { answering, type FlowScript } from "../support/fake-flow.ts";
import { eventually, nanoModel, startHarness } from "../support/gateway-harness.ts";

const { tokenizer } = await nanoModel();
const saying = (text: string, step = 1) => answering(tokenizer.encode(text), step);
const CALL = `<longcat_tool_call>get_weather
<longcat_arg_key>city</longcat_arg_key>
<longcat_arg_value>Rome</longcat_arg_value>
</longcat_tool_call>`;
const tools: OpenAI.Responses.FunctionTool[] = [
  {
    ...{ type: "function", name: "get_weather", description: "Tells the weather.", strict: false },
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
];

async function withClient(script: FlowScript) {
  const harness = await startHarness(script);
  const client = new OpenAI({ baseURL: `${harness.url}/v1`, apiKey: "none", maxRetries: 0 });
  return { harness, client, [Symbol.asyncDispose]: () => harness[Symbol.asyncDispose]() };
}

/** The prompt the flow was given, as text. */
const promptOf = (it: Awaited<ReturnType<typeof withClient>>, call = 0) =>
  tokenizer.decode(it.harness.flow.calls[call]!.request.generation.tokens);

const ask = { model: "nano", input: "Hi", store: false } as const;

async function eventsOf(it: Awaited<ReturnType<typeof withClient>>, body: object = {}) {
  const response = await it.harness.post("/v1/responses", { ...ask, stream: true, ...body });
  expect(response.headers.get("content-type")).toContain("text/event-stream");
  const blocks = (await response.text()).split("\n\n").filter((block) => block !== "" && !block.startsWith(": "));
  return blocks.map((block) => {
    const [, name, data] = /^event: (\S+)\ndata: (.*)$/.exec(block)!;
    const event = ResponseStreamEvent.parse(JSON.parse(data!));
    expect(event.type).toBe(name);
    return event;
  });
}

describe("a response", () => {
  test("is the answer with its usage, as the official client reads it", async () => {
    await using it = await withClient(saying("Hello you.</longcat_s>"));
    const answer = await it.client.responses.create({ ...ask, metadata: { a: "b" }, temperature: 0.5 });
    expect(answer.output_text).toBe("Hello you.");
    expect(answer).toMatchObject({ status: "completed", metadata: { a: "b" }, temperature: 0.5, store: false });
    const output = tokenizer.encode("Hello you.</longcat_s>").length;
    expect(answer.usage).toMatchObject({ output_tokens: output, total_tokens: answer.usage!.input_tokens + output });
    const { output_text, _request_id, ...raw } = answer as typeof answer & { _request_id: string };
    ResponseResponse.parse(raw);
  });

  test("has thought, text and calls as items of their own, streamed as in one piece", async () => {
    const text = `I should look.\n</longcat_think>\nLet me see.${CALL}</longcat_s>`;
    await using it = await withClient(saying(text));
    const body = { ...ask, tools, reasoning: { effort: "high" as const } };
    const whole = await it.client.responses.create(body);
    const streamed = await it.client.responses.stream(body).finalResponse();
    for (const { output, status } of [whole, streamed]) {
      expect(status).toBe("completed");
      expect(output.map((item) => item.type)).toEqual(["reasoning", "message", "function_call"]);
      expect(output[0]).toMatchObject({ content: [{ type: "reasoning_text", text: "I should look." }] });
      expect(output[1]).toMatchObject({ content: [{ type: "output_text", text: "Let me see." }] });
      expect(output[2]).toMatchObject({ name: "get_weather", arguments: '{"city":"Rome"}', status: "completed" });
    }
    expect(whole.usage!.output_tokens_details.reasoning_tokens).toBeGreaterThan(0);
  });

  test("goes on with what items say of earlier turns, in the chat's own form", async () => {
    await using it = await withClient(saying("Sunny.</longcat_s>"));
    const said = "What is the weather in Rome?";
    const call = { type: "function" as const, function: { name: "get_weather", arguments: '{"city":"Rome"}' } };
    await it.harness.chat({
      messages: [
        { role: "system", content: "Be short." },
        { role: "user", content: said },
        { role: "assistant", content: "Wait.", reasoning_content: "Hm.", tool_calls: [{ id: "c1", ...call }] },
        { role: "tool", tool_call_id: "c1", content: "22 degrees" },
      ],
    });
    await it.client.responses.create({
      ...{ ...ask, instructions: "Be short." },
      input: [
        { role: "user", content: [{ type: "input_text", text: said }] },
        { type: "reasoning", id: "rs_1", summary: [], content: [{ type: "reasoning_text", text: "Hm." }] },
        { role: "assistant", content: "Wait." },
        { type: "function_call", call_id: "c1", name: "get_weather", arguments: '{"city":"Rome"}' },
        { type: "function_call_output", call_id: "c1", output: "22 degrees" },
      ],
    });
    expect(promptOf(it, 1)).toBe(promptOf(it, 0));
  });

  test("that met its limit is incomplete, and says why", async () => {
    await using it = await withClient(
      answering(tokenizer.encode("Hello you"), 1, { finish: "length", completionTokens: 2 }),
    );
    const answer = await it.client.responses.stream({ ...ask, max_output_tokens: 2 }).finalResponse();
    expect(answer).toMatchObject({ status: "incomplete", incomplete_details: { reason: "max_output_tokens" } });
    expect(answer.output[0]).toMatchObject({ status: "incomplete" });
    expect(it.harness.flow.calls[0]!.request.generation.maxNewTokens).toBe(2);
  });

  test("is bound to a schema by text.format, and the client parses it", async () => {
    await using it = await withClient(saying('{"name": "Ann"}</longcat_s>'));
    const schema = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };
    const format = { type: "json_schema" as const, name: "person", schema };
    const answer = await it.client.responses.parse({ ...ask, text: { format } });
    expect(answer.output_parsed).toEqual({ name: "Ann" });
    expect(it.harness.flow.calls[0]!.request.generation.constraint).not.toBeNull();
  });

  test("calls the tool it must, out of those it may", async () => {
    await using it = await withClient(saying(`${CALL}</longcat_s>`));
    const other = { ...tools[0]!, name: "other" };
    await it.client.responses.create({
      ...{ ...ask, tools: [...tools, other] },
      tool_choice: { type: "allowed_tools", mode: "required", tools: [{ type: "function", name: "other" }] },
    });
    const { constraint } = it.harness.flow.calls[0]!.request.generation;
    expect(constraint!.grammar.text).toContain("other");
    expect(constraint!.grammar.text).not.toContain("get_weather");
  });

  test("is dropped when its client leaves", async () => {
    await using it = await withClient(async (call) => {
      call.tokens(tokenizer.encode("Hello"));
      return await call.untilAborted();
    });
    const stream = await it.client.responses.create({ ...ask, stream: true });
    for await (const event of stream) if (event.type === "response.output_text.delta") stream.controller.abort();
    await eventually(() => it.harness.flow.calls[0]!.ended);
  });
});

describe("the events of a response", () => {
  test("are numbered from 0 without a gap, and its deltas add up to its items, however the tokens come", async () => {
    const text = `Hm.\n</longcat_think>\nLet me see.${CALL}</longcat_s>`;
    for (const step of [1, 3, 500]) {
      await using it = await withClient(saying(text, step));
      const events = await eventsOf(it, { tools, reasoning: { effort: "low" } });
      expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, i) => i));
      expect(events.slice(0, 2).map(({ type }) => type)).toEqual(["response.created", "response.in_progress"]);
      const last = events.at(-1)!;
      if (last.type !== "response.completed" || !("response" in last)) throw new Error(`ends with ${last.type}`);
      const joined = (type: string) =>
        events.map((event) => (event.type === type && "delta" in event ? event.delta : "")).join("");
      expect(joined("response.reasoning_text.delta")).toBe("Hm.");
      expect(joined("response.output_text.delta")).toBe("Let me see.");
      expect(joined("response.function_call_arguments.delta")).toBe('{"city":"Rome"}');
      const done = events.filter((event) => event.type === "response.output_item.done");
      expect(done.map((event) => ("item" in event ? event.item : null))).toEqual(last.response.output);
    }
  });

  test("end with response.failed where the answer fails after its beginning", async () => {
    await using it = await withClient(async (call) => {
      call.tokens(tokenizer.encode("Hello"));
      throw new Error("lost");
    });
    const last = (await eventsOf(it)).at(-1)!;
    expect(last).toMatchObject({
      type: "response.failed",
      response: { status: "failed", error: { code: "server_error" }, output: [{ status: "incomplete" }] },
    });
  });

  test("a failure before the beginning is an HTTP status", async () => {
    await using it = await withClient(async () => {
      throw new Error("lost");
    });
    expect((await it.harness.post("/v1/responses", { ...ask, stream: true })).status).toBe(500);
  });
});

describe("what a response can't be made of is refused by name", () => {
  test.each([
    [{ input: [] }, "input"],
    [{ input: [{ role: "user", content: [{ type: "input_image", image_url: "x" }] }] }, "input[0].content[0].type"],
    [{ input: [{ type: "item_reference", id: "x" }] }, "input[0].type"],
    [{ input: [{ type: "function_call_output", call_id: "no", output: "x" }] }, "input[0].call_id"],
    [{ input: [{ type: "function_call", call_id: "c", name: "f", arguments: "[]" }] }, "input[0].arguments"],
    [{ tools: [{ type: "web_search" }] }, "tools[0].type"],
    [{ tools, tool_choice: { type: "function", name: "none" } }, "tool_choice.name"],
    [{ text: { format: { type: "json_schema", name: "a", schema: { type: "nothing" } } } }, "text.format.schema.type"],
    [{ text: { verbosity: "low" } }, "text.verbosity"],
    [{ reasoning: { effort: "huge" } }, "reasoning.effort"],
    [{ reasoning: { summary: "detailed" } }, "reasoning.summary"],
    [{ max_output_tokens: 0 }, "max_output_tokens"],
    [{ max_output_tokens: 1e9 }, "max_output_tokens"],
    [{ metadata: { a: 1 } }, "metadata.a"],
    [{ include: ["message.output_text.logprobs"] }, "include"],
    [{ truncation: "auto" }, "truncation"],
    [{ conversation: "conv_1" }, "conversation"],
    [{ max_tool_calls: 3 }, "max_tool_calls"],
    [{ top_logprobs: 2 }, "top_logprobs"],
    [{ temperature: 3 }, "temperature"],
    [{ service_tier: "gold" }, "service_tier"],
  ])("%j", async (body, param) => {
    await using it = await withClient(saying("unused"));
    const bad = it.client.responses.create({ ...ask, ...body } as never);
    await expect(bad).rejects.toMatchObject({ status: 400, param });
    await expect(bad).rejects.toThrow(param.split("[")[0]!);
    expect(it.harness.flow.calls).toEqual([]);
  });
});
