import { describe, expect, test } from "vitest";
import { CompletionChunkResponse, CompletionResponse } from "../../control-plane/gateway/response-schema.ts";
import { answering, type FlowScript } from "../support/fake-flow.ts";
import { nanoModel, readStream, startHarness } from "../support/gateway-harness.ts";

const { tokenizer } = await nanoModel();
const PATH = "/v1/completions";
const TEXT = "Once upon a time there was a Tōkyō fox.";
const saying = (text: string, settled = {}) => answering(tokenizer.encode(text), 1, settled);

function gather(events: readonly unknown[], index = 0): { text: string; finish: string | null } {
  let [text, finish] = ["", null as string | null];
  for (const event of events) {
    for (const choice of CompletionChunkResponse.parse(event).choices) {
      if (choice.index !== index) continue;
      expect(finish).toBeNull();
      text += choice.text;
      finish = choice.finish_reason;
    }
  }
  return { text, finish };
}

describe("completions", () => {
  test("a stream says what the unary answer says", async () => {
    await using harness = await startHarness(saying(`${TEXT}</longcat_s>`, { cachedTokens: 1 }));
    const body = { model: "nano", prompt: "Tell me: ", max_tokens: 99, stream_options: { include_usage: true } };
    const response = await harness.post(PATH, body);
    const answer = CompletionResponse.parse(await response.json());
    expect(answer.id).toBe(`cmpl-${response.headers.get("x-request-id")}`);
    expect(answer.choices).toEqual([{ index: 0, text: TEXT, logprobs: null, finish_reason: "stop" }]);
    const { events, done } = await readStream(await harness.post(PATH, { ...body, stream: true }));
    expect(done).toBe(true);
    expect(gather(events)).toEqual({ text: TEXT, finish: "stop" });
    expect(events.at(-1)).toMatchObject({ choices: [], usage: answer.usage });
    const promptTokens = tokenizer.encode("Tell me: ");
    expect(answer.usage).toMatchObject({
      prompt_tokens: promptTokens.length,
      prompt_tokens_details: { cached_tokens: 1 },
    });
    expect(harness.flow.calls[0]!.request.generation.tokens).toEqual(promptTokens);
  });

  test("tags are text here", async () => {
    await using harness = await startHarness(saying("<longcat_think>\nhm</longcat_think>\n<longcat_tool_call>f"));
    const answer = CompletionResponse.parse(await (await harness.post(PATH, { model: "nano", prompt: "x" })).json());
    expect(answer.choices[0]!.text).toBe("<longcat_think>\nhm</longcat_think>\n<longcat_tool_call>f");
  });

  test("several prompts with several choices each: indices run over the prompts in order", async () => {
    const script: FlowScript = async (call, index) => {
      await call.stream(tokenizer.encode(`answer ${index}`));
      return { cachedTokens: [3, 9, 5, 9][index]! };
    };
    await using harness = await startHarness(script);
    const body = { model: "nano", prompt: ["first", "second one"], n: 2, seed: -1 };
    const answer = CompletionResponse.parse(await (await harness.post(PATH, body)).json());
    expect(answer.choices.map((choice) => [choice.index, choice.text])).toEqual(
      [0, 1, 2, 3].map((i) => [i, `answer ${i}`]),
    );
    const lengths = ["first", "second one"].map((text) => tokenizer.encode(text).length);
    expect(answer.usage).toMatchObject({
      prompt_tokens: lengths[0]! + lengths[1]!,
      prompt_tokens_details: { cached_tokens: 8 },
    });
    expect(harness.flow.calls.map((call) => call.request.generation.promptLength)).toEqual([
      lengths[0],
      lengths[0],
      lengths[1],
      lengths[1],
    ]);
    const seeds = harness.flow.calls.map((call) => call.request.generation.sampling.seed);
    expect(seeds[0]).toBe(Number.MAX_SAFE_INTEGER);
    expect(seeds[0]).not.toBe(seeds[1]);
    expect(seeds.slice(2)).toEqual(seeds.slice(0, 2));
  });

  test.each([
    ["one list of token ids", [7, 8, 9], [[7, 8, 9]]],
    ["several lists of token ids", [[7, 8], [9]], [[7, 8], [9]]],
  ])("%s are prompts as they are", async (_name, prompt, expected) => {
    await using harness = await startHarness(saying("ok"));
    expect((await harness.post(PATH, { model: "nano", prompt })).status).toBe(200);
    expect(harness.flow.calls.map((call) => [...call.request.generation.tokens])).toEqual(expected);
  });

  test("echo puts the prompt first, streamed or not", async () => {
    await using harness = await startHarness(saying(" fox"));
    const words = [...tokenizer.encode("a hungry")];
    for (const prompt of ["a hungry", words]) {
      const body = { model: "nano", prompt, echo: true };
      const answer = CompletionResponse.parse(await (await harness.post(PATH, body)).json());
      expect(answer.choices[0]!.text).toBe("a hungry fox");
      const { events } = await readStream(await harness.post(PATH, { ...body, stream: true }));
      expect(gather(events).text).toBe("a hungry fox");
    }
  });

  test("logprobs come as parallel lists whose offsets point into the text", async () => {
    const ids = tokenizer.encode(`${TEXT}</longcat_s>`);
    const script: FlowScript = async (call) => {
      for (const id of ids) {
        const one = {
          chosen: Float32Array.of(-0.25),
          width: 1,
          ids: Int32Array.of(id),
          values: Float32Array.of(-0.25),
        };
        call.tokens([id], one);
      }
      return undefined;
    };
    await using harness = await startHarness(script);
    const body = { model: "nano", prompt: "x", logprobs: 1 };
    const answer = CompletionResponse.parse(await (await harness.post(PATH, body)).json());
    const rows = answer.choices[0]!.logprobs!;
    expect(rows.tokens).toHaveLength(ids.length - 1);
    const characters = [...TEXT];
    for (const [i, token] of rows.tokens.entries()) {
      expect(rows.token_logprobs[i]).toBe(-0.25);
      expect(rows.top_logprobs[i]).toEqual({ [token]: -0.25 });
      if (!token.includes("\ufffd")) {
        const at = rows.text_offset[i]!;
        expect(characters.slice(at, at + [...token].length).join("")).toBe(token);
      }
    }
    const { events } = await readStream(await harness.post(PATH, { ...body, stream: true }));
    const streamed = events.flatMap((event) => CompletionChunkResponse.parse(event).choices[0]!.logprobs ?? []);
    expect(streamed.flatMap((one) => one.tokens)).toEqual(rows.tokens);
    expect(streamed.flatMap((one) => one.text_offset)).toEqual(rows.text_offset);
  });

  test("a stop string cuts the text", async () => {
    await using harness = await startHarness(saying(TEXT));
    const body = { model: "nano", prompt: "x", stop: [" there"] };
    const answer = CompletionResponse.parse(await (await harness.post(PATH, body)).json());
    expect(answer.choices[0]).toMatchObject({ text: "Once upon a time", finish_reason: "stop" });
    expect(gather((await readStream(await harness.post(PATH, { ...body, stream: true }))).events).text).toBe(
      "Once upon a time",
    );
  });
});
