import { readFileSync } from "node:fs";
import OpenAI from "openai";
import { describe, expect, test } from "vitest";
import { answering, type FlowScript } from "../support/fake-flow.ts";
import { eventually, nanoModel, startHarness } from "../support/gateway-harness.ts";

const { tokenizer } = await nanoModel();
const dialogues: { messages: object[]; tools: object[]; greedy: string }[] = JSON.parse(
  readFileSync(new URL("../../models/nano/dialogues.json", import.meta.url), "utf8"),
);
const saying = (text: string) => answering(tokenizer.encode(text));
const hi: OpenAI.ChatCompletionMessageParam[] = [{ role: "user", content: "Hi" }];

async function withClient(script: FlowScript) {
  const harness = await startHarness(script);
  const client = new OpenAI({ baseURL: `${harness.url}/v1`, apiKey: "none", maxRetries: 0 });
  return { harness, client, [Symbol.asyncDispose]: () => harness[Symbol.asyncDispose]() };
}

describe("the official client", () => {
  test("unary chat with usage and the request id", async () => {
    await using it = await withClient(saying("Hello you.</longcat_s>"));
    const answer = await it.client.chat.completions.create({ model: "nano", messages: hi });
    expect(answer.choices[0]!.message.content).toBe("Hello you.");
    expect(answer.usage!.completion_tokens).toBe(tokenizer.encode("Hello you.</longcat_s>").length);
    expect(answer._request_id).toMatch(/^req_/);
  });

  test("streamed chat with usage", async () => {
    await using it = await withClient(saying("Hello you.</longcat_s>"));
    const stream = await it.client.chat.completions.create({
      ...{ model: "nano", messages: hi, stream: true as const },
      stream_options: { include_usage: true },
    });
    let text = "";
    let usage: OpenAI.CompletionUsage | null | undefined;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    expect(text).toBe("Hello you.");
    expect(usage!.total_tokens).toBe(usage!.prompt_tokens + usage!.completion_tokens);
  });

  test("its own accumulator accepts streamed tool calls", async () => {
    const { messages, tools, greedy } = dialogues[6]!;
    await using it = await withClient(saying(greedy));
    const body = { model: "nano", messages, tools, reasoning_effort: "high" } as never;
    const stream = it.client.chat.completions.stream(body);
    const streamed = (await stream.finalChatCompletion()).choices[0]!;
    const unary = (await it.client.chat.completions.create(body as OpenAI.ChatCompletionCreateParamsNonStreaming))
      .choices[0]!;
    for (const choice of [streamed, unary]) {
      expect(choice.finish_reason).toBe("tool_calls");
      const call = choice.message.tool_calls![0]!;
      expect(call.id).toMatch(/^call_[0-9a-f]{24}$/);
      if (call.type !== "function") throw new Error("not a function");
      expect(call.function.name).toBe("get_weather");
      expect(JSON.parse(call.function.arguments)).toEqual({ city: "Rome" });
    }
    expect(unary.message).toMatchObject({ reasoning_content: "I should call get_weather." });
  });

  test("reasoning is counted and told apart", async () => {
    const reasoning = "Let me think.";
    await using it = await withClient(saying(`${reasoning}</longcat_think>Yes.</longcat_s>`));
    const answer = await it.client.chat.completions.create({ model: "nano", messages: hi, reasoning_effort: "high" });
    expect(answer.choices[0]!.message).toMatchObject({ content: "Yes.", reasoning_content: reasoning });
    expect(answer.usage!.completion_tokens_details!.reasoning_tokens).toBe(tokenizer.encode(reasoning).length);
  });

  test("an abort in mid stream reaches the flow at once", async () => {
    await using it = await withClient(async (call) => {
      call.tokens(tokenizer.encode("Hello"));
      return await call.untilAborted();
    });
    const stream = await it.client.chat.completions.create({ model: "nano", messages: hi, stream: true });
    for await (const chunk of stream) if (chunk.choices[0]?.delta.content) stream.controller.abort();
    await eventually(() => it.harness.flow.calls[0]!.ended);
  });

  test("an abort of a unary request reaches the flow at once", async () => {
    await using it = await withClient((call) => call.untilAborted());
    const controller = new AbortController();
    const answer = it.client.chat.completions.create({ model: "nano", messages: hi }, { signal: controller.signal });
    answer.catch(() => {});
    await eventually(() => it.harness.flow.calls.length === 1);
    controller.abort();
    await expect(answer).rejects.toThrow(OpenAI.APIUserAbortError);
    await eventually(() => it.harness.flow.calls[0]!.ended);
  });

  test("bad input is its BadRequestError with param and code", async () => {
    await using it = await withClient(saying("unused"));
    const bad = it.client.chat.completions.create({ model: "nano", messages: hi, temperature: 7 });
    await expect(bad).rejects.toMatchObject({ status: 400, param: "temperature", code: "invalid_request" });
    const missing = it.client.chat.completions.create({ model: "none", messages: hi });
    await expect(missing).rejects.toThrow(OpenAI.NotFoundError);
  });

  test("completions and models", async () => {
    await using it = await withClient(saying("upon a time</longcat_s>"));
    const answer = await it.client.completions.create({ model: "nano", prompt: "Once ", max_tokens: 20 });
    expect(answer.choices[0]!.text).toBe("upon a time");
    let text = "";
    const stream = await it.client.completions.create({ model: "nano", prompt: "Once ", stream: true });
    for await (const chunk of stream) text += chunk.choices[0]?.text ?? "";
    expect(text).toBe("upon a time");
    expect((await it.client.models.list()).data.map((model) => model.id)).toEqual(["nano"]);
    expect((await it.client.models.retrieve("nano")).object).toBe("model");
  });
});
