import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { RankStatus } from "#protocol/operator.ts";
import { chatBody, dialogues, expectedAnswer, nanoModel } from "../support/dialogues.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";

/** The official client against the whole system, as a user would point it there. */

const { tokenizer } = await nanoModel();

let system: System;
let client: OpenAI;
let decode: RankStatus;

beforeAll(async () => {
  system = await startSystem({ MARGAY_BACKEND: "ref" });
  client = new OpenAI({ baseURL: `${system.url}/v1`, apiKey: "none", maxRetries: 0 });
  await system.ready("prefill", 1);
  decode = (await system.ready("decode", 1))[0]!;
});
afterAll(async () => expect(await system.stop()).toBe(0));

const thinking = dialogues.findIndex((d) => d.tools === null && expectedAnswer(d).reasoning !== "");
const calling = dialogues.findIndex((d) => expectedAnswer(d).toolCalls.length > 0);
const plain = dialogues.findIndex((d) => d.tools === null && expectedAnswer(d).reasoning === "");

/** A recorded dialogue as the client's own type of request. */
function request(number: number): OpenAI.ChatCompletionCreateParamsNonStreaming {
  const dialogue = dialogues[number]!;
  const max_tokens = tokenizer.encode(dialogue.greedy).length;
  return { ...chatBody(dialogue), temperature: 0, max_tokens } as never;
}

const story: OpenAI.ChatCompletionCreateParamsNonStreaming = {
  ...{ model: "nano", messages: [{ role: "user", content: "Tell me a story about a fox." }], max_tokens: 3_000 },
  ...({ min_tokens: 3_000 } as object),
};

describe("the official client", () => {
  test("unary chat gives the recorded answer with its usage and request id", async () => {
    const { data: answer, response } = await client.chat.completions.create(request(plain)).withResponse();
    expect(answer.choices[0]!.message.content).toBe(expectedAnswer(dialogues[plain]!).content);
    expect(answer.usage!.prompt_tokens).toBe(tokenizer.encode(dialogues[plain]!.prompt).length);
    expect(answer.usage!.completion_tokens).toBe(tokenizer.encode(dialogues[plain]!.greedy).length);
    expect(answer).toMatchObject({ _request_id: response.headers.get("x-request-id") });
    expect(response.headers.get("x-margay-decode")).toMatch(/^decode-/);
  });

  test("streamed chat gives the same, with usage at the end and reasoning apart", async () => {
    const stream = await client.chat.completions.create({
      ...{ ...request(thinking), stream: true as const },
      stream_options: { include_usage: true },
    });
    let content = "";
    let reasoning = "";
    let usage: OpenAI.CompletionUsage | null | undefined;
    for await (const chunk of stream) {
      expect(usage).toBeFalsy();
      const delta = chunk.choices[0]?.delta as { content?: string; reasoning_content?: string } | undefined;
      content += delta?.content ?? "";
      reasoning += delta?.reasoning_content ?? "";
      usage = chunk.usage ?? usage;
    }
    expect({ content, reasoning }).toEqual({
      content: expectedAnswer(dialogues[thinking]!).content,
      reasoning: expectedAnswer(dialogues[thinking]!).reasoning,
    });
    expect(usage!.total_tokens).toBe(usage!.prompt_tokens + usage!.completion_tokens);
    // The line break before the closing tag is a token of the reasoning, and no part of its text.
    expect(usage!.completion_tokens_details!.reasoning_tokens).toBe(tokenizer.encode(`${reasoning}\n`).length);
  });

  test("tools are called, streamed and not, and its own accumulator accepts them", async () => {
    const wanted = expectedAnswer(dialogues[calling]!);
    const unary = (await client.chat.completions.create(request(calling))).choices[0]!;
    const streamed = (await client.chat.completions.stream(request(calling) as never).finalChatCompletion())
      .choices[0]!;
    for (const choice of [unary, streamed]) {
      expect(choice.finish_reason).toBe("tool_calls");
      const calls = choice.message.tool_calls!.map((call) => {
        if (call.type !== "function") throw new Error("not a function");
        return { name: call.function.name, arguments: JSON.parse(call.function.arguments) };
      });
      expect(calls).toEqual(wanted.toolCalls);
    }
    expect(unary.message).toMatchObject({ reasoning_content: wanted.reasoning });
  });

  test("an abort in mid stream frees everything it held", async () => {
    const stream = await client.chat.completions.create({ ...story, stream: true });
    let chunks = 0;
    let heldThen = 0;
    for await (const chunk of stream) {
      if (!chunk.choices[0]?.delta.content || ++chunks < 5) continue;
      heldThen = await held(decode);
      stream.controller.abort();
    }
    expect(heldThen).toBeGreaterThan(0);
    await expectNothingHeld(system);
    await nobodyServed();
  });

  test("an abort of a unary answer does too", async () => {
    const abort = new AbortController();
    const answer = client.chat.completions.create(story, { signal: abort.signal });
    answer.catch(() => {});
    await waitFor("the request to hold pages", async () => ((await held(decode)) > 0 ? true : null), 15_000);
    abort.abort();
    await expect(answer).rejects.toThrow(OpenAI.APIUserAbortError);
    await expectNothingHeld(system);
    await nobodyServed();
  });

  test("errors come as its own classes, with the field at fault", async () => {
    const chat = (body: object) => client.chat.completions.create({ ...request(plain), ...body });
    await expect(chat({ temperature: 7 })).rejects.toMatchObject({ status: 400, param: "temperature" });
    await expect(chat({ temperature: 7 })).rejects.toThrow(OpenAI.BadRequestError);
    await expect(chat({ messages: [] })).rejects.toMatchObject({ status: 400, param: "messages" });
    await expect(chat({ model: "none" })).rejects.toThrow(OpenAI.NotFoundError);
    const long = "word ".repeat(20_000);
    await expect(chat({ messages: [{ role: "user", content: long }] })).rejects.toMatchObject({
      ...{ status: 400, code: "context_length_exceeded" },
    });
  });

  test("completions and models", async () => {
    const prompt = [...tokenizer.encode(dialogues[plain]!.prompt)];
    const max_tokens = tokenizer.encode(dialogues[plain]!.greedy).length;
    const answer = await client.completions.create({ model: "nano", prompt, temperature: 0, max_tokens });
    expect(answer.choices[0]!.text).toBe(expectedAnswer(dialogues[plain]!).content);
    expect((await client.models.list()).data.map((model) => model.id)).toEqual(["nano"]);
    expect((await client.models.retrieve("nano")).object).toBe("model");
  });
});

/** Blocks of a rank that belong to some request. */
async function held(rank: RankStatus): Promise<number> {
  let blocks = 0;
  for (const [labels, count] of await system.metric(rank.healthUrl, "margay_kv_pages"))
    if (!/free|cached/.test(labels)) blocks += count;
  return blocks;
}

/** Not on pages alone: the gateway and the workers have forgotten the request as well. */
async function nobodyServed(): Promise<void> {
  await waitFor(
    "all requests to be forgotten",
    async () => ((await system.ranks()).every((rank) => rank.requests === 0) ? true : null),
    15_000,
  );
}
