import { once } from "node:events";
import { connect } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ErrorResponse } from "../../control-plane/gateway/response-schema.ts";
import { answering } from "../support/fake-flow.ts";
import { eventually, type Harness, startHarness } from "../support/gateway-harness.ts";

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness(answering([100, 2]), {
    vet: async (_model, grammar) => ({ fault: grammar.text === "unreadable" ? "no expression" : null, first: null }),
  });
});
afterAll(async () => {
  expect(harness.flow.calls).toEqual([]);
  await harness[Symbol.asyncDispose]();
});

const user = { role: "user", content: "Hi" };
const call = (name: string, args: unknown) => ({
  role: "assistant",
  tool_calls: [{ id: "c1", type: "function", function: { name, arguments: args } }],
});
const schemaFormat = (schema: object) => ({
  response_format: { type: "json_schema", json_schema: { name: "x", schema } },
});
const tool = (name: string) => ({ type: "function", function: { name } });

/** What is wrong with the body, the `param` told, and words of the sentence. */
type Row = readonly [string, Record<string, unknown>, string | null, RegExp];

const CHAT: readonly Row[] = [
  ["no messages", { messages: undefined }, "messages", /is required and must be a list/],
  ["empty messages", { messages: [] }, "messages", /at least one message/],
  ["messages of a wrong type", { messages: "Hi" }, "messages", /must be a list of messages/],
  ["a message that is no object", { messages: ["Hi"] }, "messages[0]", /must be a message object/],
  ["an unknown role", { messages: [{ role: "pirate", content: "Hi" }] }, "messages[0].role", /"system", .*"tool"/],
  ["a missing role", { messages: [user, { content: "Hi" }] }, "messages[1].role", /must be one of/],
  ["content of a wrong type", { messages: [{ role: "user", content: 7 }] }, "messages[0].content", /string or a list/],
  ["missing content", { messages: [{ role: "user" }] }, "messages[0].content", /must be a string or a list/],
  [
    "an image part",
    {
      messages: [
        {
          role: "user",
          content: [
            { type: "text", text: "a" },
            { type: "image_url", image_url: {} },
          ],
        },
      ],
    },
    "messages[0].content[1].type",
    /must be "text"/,
  ],
  [
    "a tool message without id",
    { messages: [user, { role: "tool", content: "x" }] },
    "messages[1].tool_call_id",
    /required/,
  ],
  [
    "a tool message for no call",
    { messages: [user, { role: "tool", content: "x", tool_call_id: "c9" }] },
    "messages[1].tool_call_id",
    /earlier assistant message/,
  ],
  [
    "arguments that are no JSON",
    { messages: [user, call("f", "{oops")] },
    "messages[1].tool_calls[0].function.arguments",
    /valid JSON/,
  ],
  [
    "arguments of a wrong type",
    { messages: [user, call("f", 5)] },
    "messages[1].tool_calls[0].function.arguments",
    /JSON object/,
  ],
  [
    "a message with function_call",
    { messages: [{ role: "assistant", function_call: {} }] },
    "messages[0].function_call",
    /tool_calls/,
  ],
  ["too long a prompt", { messages: [{ role: "user", content: "word ".repeat(9000) }] }, "messages", /4096/],
  ["no model", { model: undefined }, "model", /is required/],
  ["max_tokens of zero", { max_tokens: 0 }, "max_tokens", /at least 1/],
  ["max_tokens above the context", { max_tokens: 4097 }, "max_tokens", /at most 4096/],
  ["max_completion_tokens above the context", { max_completion_tokens: 9999 }, "max_completion_tokens", /at most 4096/],
  ["a fractional max_tokens", { max_tokens: 1.5 }, "max_tokens", /whole number/],
  ["a temperature too high", { temperature: 3 }, "temperature", /from 0 to 2/],
  ["a temperature in words", { temperature: "hot" }, "temperature", /from 0 to 2/],
  ["a negative top_p", { top_p: -0.1 }, "top_p", /from 0 to 1/],
  ["a top_k below -1", { top_k: -2 }, "top_k", /at least -1/],
  ["a min_p above 1", { min_p: 2 }, "min_p", /from 0 to 1/],
  ["a penalty too high", { frequency_penalty: 3 }, "frequency_penalty", /from -2 to 2/],
  ["a repetition_penalty of 0", { repetition_penalty: 0 }, "repetition_penalty", /above 0/],
  ["a seed that is no integer", { seed: 1.5 }, "seed", /whole number/],
  ["n of zero", { n: 0 }, "n", /at least 1/],
  ["n too large", { n: 5 }, "n", /at most 4/],
  ["five stop strings", { stop: ["a", "b", "c", "d", "e"] }, "stop", /at most 4/],
  ["an empty stop string", { stop: [""] }, "stop[0]", /1 to 512 characters/],
  ["a stop of a wrong type", { stop: 5 }, "stop", /must be a string or a list/],
  ["a stop token outside the vocabulary", { stop_token_ids: [5, 2048] }, "stop_token_ids[1]", /from 0 to 2047/],
  ["a bias for no token id", { logit_bias: { hello: 1 } }, "logit_bias.hello", /token ids/],
  ["a bias outside the vocabulary", { logit_bias: { "2048": 1 } }, "logit_bias.2048", /from 0 to 2047/],
  ["a bias too strong", { logit_bias: { "5": 101 } }, "logit_bias.5", /-100 to 100/],
  ["min_tokens above max_tokens", { min_tokens: 9, max_tokens: 8 }, "min_tokens", /at most max_tokens/],
  ["ignore_eos with stop tokens", { ignore_eos: true, stop_token_ids: [5] }, "ignore_eos", /stop_token_ids/],
  ["top_logprobs without logprobs", { top_logprobs: 2 }, "top_logprobs", /logprobs is true/],
  ["too many top_logprobs", { logprobs: true, top_logprobs: 21 }, "top_logprobs", /from 0 to 20/],
  ["logprobs of a wrong type", { logprobs: 3 }, "logprobs", /true or false/],
  ["stream in words", { stream: "yes" }, "stream", /true or false/],
  ["stream_options of a wrong type", { stream_options: 1 }, "stream_options", /an object/],
  ["an unknown response_format", { response_format: { type: "xml" } }, "response_format.type", /"json_schema"/],
  [
    "a response_format without a name",
    { response_format: { type: "json_schema", json_schema: { schema: {} } } },
    "response_format.json_schema.name",
    /1 to 64 letters/,
  ],
  [
    "a schema with a word that can't be kept",
    schemaFormat({ type: "object", properties: { a: { type: "array", uniqueItems: true } } }),
    "response_format.json_schema.schema.properties.a.uniqueItems",
    /not supported/,
  ],
  [
    "two structured outputs",
    { ...schemaFormat({}), guided_regex: "a" },
    "guided_regex",
    /together with response_format/,
  ],
  ["an empty choice", { guided_choice: [] }, "guided_choice", /1 to 1000/],
  ["a schema in broken JSON", { guided_json: "{" }, "guided_json", /JSON text/],
  ["an unknown structured output", { structured_outputs: { zebra: 1 } }, "structured_outputs", /zebra/],
  ["a regular expression that can't be read", { guided_regex: "unreadable" }, "guided_regex", /can't be kept: no/],
  ["a schema that must not end", { ...schemaFormat({}), ignore_eos: true }, "ignore_eos", /response_format/],
  ["a schema and min_tokens", { ...schemaFormat({}), min_tokens: 3 }, "min_tokens", /response_format/],
  ["a schema and tools", { ...schemaFormat({}), tools: [tool("f")] }, "response_format.json_schema.schema", /tools/],
  ["a forced call without tools", { tool_choice: "required" }, "tool_choice", /without tools/],
  ["a tool_choice of no kind", { tools: [tool("f")], tool_choice: "any" }, "tool_choice", /"required"/],
  [
    "a named tool that isn't there",
    { tools: [tool("f")], tool_choice: tool("g") },
    "tool_choice.function.name",
    /one of/,
  ],
  ["a tool name with a space", { tools: [tool("a b")] }, "tools[0].function.name", /1 to 64/],
  ["a tool that is no function", { tools: [{ type: "retrieval" }] }, "tools[0].type", /"function"/],
  ["an unknown reasoning_effort", { reasoning_effort: "extreme" }, "reasoning_effort", /"none", .*"high"/],
  [
    "enable_thinking in words",
    { chat_template_kwargs: { enable_thinking: "yes" } },
    "chat_template_kwargs.enable_thinking",
    /true, false or null/,
  ],
  [
    "a reserved template argument",
    { chat_template_kwargs: { messages: [] } },
    "chat_template_kwargs.messages",
    /cannot be set/,
  ],
  ["template arguments of a wrong type", { chat_template_kwargs: [] }, "chat_template_kwargs", /an object/],
  ["store", { store: true }, "store", /not supported/],
  ["functions", { functions: [{ name: "f" }] }, "functions", /not supported/],
  ["audio", { modalities: ["text", "audio"] }, "modalities[1]", /must be "text"/],
];

const COMPLETION: readonly Row[] = [
  ["n too large for its prompts", { n: 4, prompt: Array(65).fill("a") }, "n", /at most 3 for 65 prompts/],
  ["no prompt", { prompt: undefined }, "prompt", /must be a string/],
  ["an empty prompt", { prompt: "" }, "prompt", /must not be empty/],
  ["an empty list", { prompt: [] }, "prompt", /1 to 128/],
  ["prompts of two kinds", { prompt: ["a", [1]] }, "prompt", /list of 1 to 128/],
  ["too many prompts", { prompt: new Array(129).fill("a") }, "prompt", /1 to 128/],
  ["an id beyond 32 bits", { prompt: [4294967301] }, "prompt[0]", /token id/],
  ["a list of lists of texts", { prompt: [["a"]] }, "prompt[0][0]", /token id/],
  ["an empty token prompt", { prompt: [[]] }, "prompt[0]", /at least one token id/],
  ["a mixed list", { prompt: [1, "a"] }, "prompt[1]", /token id/],
  ["a fraction among the tokens", { prompt: [1, 2.5, 3] }, "prompt[1]", /whole number/],
  ["a token outside the vocabulary", { prompt: [1, 2048] }, "prompt[1]", /from 0 to 2047/],
  [
    "a token outside the vocabulary in the second prompt",
    { prompt: [[1], [5, 9999]] },
    "prompt[1][1]",
    /from 0 to 2047/,
  ],
  ["a negative token", { prompt: [-1] }, "prompt[0]", /at least 0/],
  ["too long a prompt", { prompt: new Array(4096).fill(5) }, "prompt", /4096 tokens; nano takes at most 4095/],
  ["too long a text", { prompt: "word ".repeat(9000) }, "prompt", /4096/],
  ["too many logprobs", { logprobs: 21 }, "logprobs", /from 0 to 20/],
  ["a suffix", { suffix: "end" }, "suffix", /not supported/],
  ["best_of", { best_of: 3 }, "best_of", /not supported/],
  ["echo with logprobs", { echo: true, logprobs: 1 }, "echo", /logprobs/],
];

async function refused(response: Response, status = 400) {
  expect(response.status).toBe(status);
  expect(response.headers.get("content-type")).toMatch(/^application\/json/);
  expect(response.headers.get("x-request-id")).toMatch(/^req_[0-9a-f]{24}$/);
  const { error } = ErrorResponse.parse(await response.json());
  expect(error.message).toMatch(/\.$/);
  return error;
}

describe("every fault of the client is told in OpenAI's form, with the field and what it allows", () => {
  test.each(CHAT)("chat: %s", async (_name, change, param, words) => {
    for (const stream of [false, true]) {
      const error = await refused(await harness.chat({ stream, ...change }));
      expect(error).toMatchObject({ type: "invalid_request_error", param });
      expect(error.message).toMatch(words);
    }
  });

  test.each(COMPLETION)("completions: %s", async (_name, change, param, words) => {
    const body = { model: "nano", prompt: "Once", ...change };
    const error = await refused(await harness.post("/v1/completions", body));
    expect(error).toMatchObject({ type: "invalid_request_error", param });
    expect(error.message).toMatch(words);
  });

  test("a prompt over the context has its own code", async () => {
    const long = [{ role: "user", content: "word ".repeat(9000) }];
    expect((await refused(await harness.chat({ messages: long }))).code).toBe("context_length_exceeded");
    const error = await refused(
      await harness.post("/v1/completions", { model: "nano", prompt: new Array(5000).fill(5) }),
    );
    expect(error.code).toBe("context_length_exceeded");
  });

  test("an unknown model is 404 model_not_found", async () => {
    const error = await refused(await harness.chat({ model: "gpt-9" }), 404);
    expect(error).toMatchObject({ code: "model_not_found", param: "model" });
    expect(error.message).toContain('"nano"');
  });

  test.each([
    ["cut off", '{"model": "nano", "messages": [', /at character 31/],
    ["with a stray word", '{"model": nano}', /not valid JSON/],
    ["with a missing comma", '{"a": 1 "b": 2}', /at character 8/],
  ])("JSON %s", async (_name, body, words) => {
    const error = await refused(await harness.post("/v1/chat/completions", body));
    expect(error.message).toMatch(words);
    expect(error.message).not.toContain("nano");
  });

  test.each(["[]", '"text"', "null", "7"])("a body that is %s", async (body) => {
    expect((await refused(await harness.post("/v1/chat/completions", body))).message).toBe(
      "The body must be a JSON object.",
    );
  });

  test("no body, and another content type", async () => {
    const url = `${harness.url}/v1/chat/completions`;
    await refused(await fetch(url, { method: "POST" }));
    const text = await refused(
      await fetch(url, { method: "POST", body: "model=nano", headers: { "content-type": "text/plain" } }),
    );
    expect(text.message).toBe("The content type must be application/json.");
  });

  test("a body above the limit is 413", async () => {
    const error = await refused(await harness.chat({ user: "x".repeat(1_048_577) }), 413);
    expect(error.message).toBe("The body must be at most 1 MiB.");
  });

  test("a client reads the answer to a body far above the limit, and its connection stays", async () => {
    const { hostname, port } = new URL(harness.url);
    const socket = connect({ host: hostname, port: Number(port) });
    let received = "";
    const statuses = () => [...received.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => status);
    socket.setEncoding("utf8").on("data", (piece: string) => {
      received += piece;
    });
    const failed = once(socket, "error").then(([error]) => Promise.reject(error as Error));
    const length = 40 * 1_048_576;
    const head = `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${length}\r\n\r\n`;
    socket.write(head);
    socket.write("x".repeat(length));
    socket.write("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n");
    await Promise.race([failed, eventually(() => statuses().length === 2)]);
    expect(statuses()).toEqual(["413", "200"]);
    socket.destroy();
  });

  test("headers above the limit are called so", async () => {
    const response = await fetch(`${harness.url}/livez`, { headers: { "x-long": "x".repeat(20_000) } });
    expect(response.status).toBe(400);
    const { error } = ErrorResponse.parse(await response.json());
    expect(error.message).toBe("The address and headers of a request must be at most 16384 bytes.");
  });

  test("deep nesting is refused, not a crash", async () => {
    const deep = `${"[".repeat(100_000)}${"]".repeat(100_000)}`;
    await refused(await harness.post("/v1/chat/completions", deep));
    const inside = `{"model":"nano","messages":[{"role":"user","content":"Hi"}],"chat_template_kwargs":{"a":${deep}}}`;
    expect((await refused(await harness.post("/v1/chat/completions", inside))).param).toBe("chat_template_kwargs.a");
  });

  test("prompt text is in no error", async () => {
    const secret = "xyzzy-secret";
    const messages = [{ role: "user", content: secret }];
    for (const change of [{ temperature: secret }, { stop: [secret, 5] }, { logit_bias: { "1": secret } }]) {
      expect(JSON.stringify(await refused(await harness.chat({ messages, ...change })))).not.toContain(secret);
    }
  });
});

describe("what asks for nothing is accepted", () => {
  test("neutral values of unsupported fields, nulls and unknown fields", async () => {
    await using accepting = await startHarness(answering([100, 2]));
    const neutral = {
      ...{ store: false, service_tier: "auto", functions: [], function_call: null, suffix: null, modalities: ["text"] },
      ...{
        response_format: { type: "text" },
        temperature: null,
        max_tokens: null,
        stop: null,
        tools: [],
        logprobs: false,
      },
      ...{
        user: "me",
        metadata: { a: "b" },
        parallel_tool_calls: false,
        tool_choice: "none",
        some_new_field: { x: 1 },
      },
    };
    expect((await accepting.chat(neutral)).status).toBe(200);
    const completion = { model: "nano", prompt: "Once", suffix: "", best_of: 1, echo: false, logprobs: null, n: 1 };
    expect((await accepting.post("/v1/completions", completion)).status).toBe(200);
  });
});
