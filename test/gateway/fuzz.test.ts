import { expect, test } from "vitest";
import { ErrorResponse } from "../../control-plane/gateway/response-schema.ts";
import { answering } from "../support/fake-flow.ts";
import { startHarness } from "../support/gateway-harness.ts";
import { mutate, randomOf } from "../support/junk.ts";

const CHAT = {
  model: "nano",
  messages: [
    { role: "system", content: "s" },
    { role: "user", content: [{ type: "text", text: "a" }] },
    {
      role: "assistant",
      content: null,
      tool_calls: [{ id: "c", type: "function", function: { name: "f", arguments: "{}" } }],
    },
    { role: "tool", tool_call_id: "c", content: "r" },
  ],
  tools: [
    { type: "function", function: { name: "f", description: "d", parameters: { type: "object", properties: {} } } },
  ],
  ...{
    tool_choice: "auto",
    temperature: 0.5,
    top_p: 0.5,
    top_k: 5,
    min_p: 0.1,
    seed: 3,
    n: 1,
    stop: ["x"],
    max_tokens: 9,
  },
  ...{ logprobs: true, top_logprobs: 1, logit_bias: { "5": 1 }, stop_token_ids: [4], min_tokens: 1, stream: false },
  ...{ chat_template_kwargs: { enable_thinking: true }, reasoning_effort: "low", response_format: { type: "text" } },
  ...{ frequency_penalty: 0, presence_penalty: 0, repetition_penalty: 1, stream_options: { include_usage: true } },
};
const { messages: _messages, tools: _tools, tool_choice: _choice, top_logprobs: _top, ...sampling } = CHAT;
const COMPLETION = { ...sampling, logprobs: 1, prompt: ["a", "b"], echo: false };

test("whatever a client sends, the answer is a success or a 4xx that names what is wrong", async () => {
  await using harness = await startHarness(answering([100, 2]));
  const random = randomOf(20_261_123);
  const statuses = new Map<number, number>();
  for (let round = 0; round < 600; round++) {
    const [path, base] = round % 3 === 0 ? ["/v1/completions", COMPLETION] : ["/v1/chat/completions", CHAT];
    let body: unknown = base;
    for (let times = 1 + random(2); times > 0; times--) body = mutate(body, random);
    const response = await harness.post(path!, JSON.stringify(body));
    statuses.set(response.status, (statuses.get(response.status) ?? 0) + 1);
    const text = await response.text();
    if (response.status === 200) continue;
    expect([400, 404], `${JSON.stringify(body)} -> ${text}`).toContain(response.status);
    expect(ErrorResponse.parse(JSON.parse(text)).error.type).toBe("invalid_request_error");
  }
  expect(statuses.get(200)).toBeGreaterThan(20);
  expect(statuses.get(400)).toBeGreaterThan(200);
});
