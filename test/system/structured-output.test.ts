import OpenAI from "openai";
import { afterAll, beforeAll, expect, test } from "vitest";
import { fakeRandom } from "../support/fake-clock.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { faultOf, SchemaMaker } from "../support/schemas.ts";
import { type System, startSystem } from "../support/system.ts";

/** Answers bound to schemas, grammars and tools, by the whole system and the official client. */

let system: System;
let client: OpenAI;

beforeAll(async () => {
  system = await startSystem({ MARGAY_DECODE: "2..2" });
  client = new OpenAI({ baseURL: `${system.url}/v1`, apiKey: "none", maxRetries: 0 });
  await system.ready("prefill", 1);
  await system.ready("decode", 2);
});
afterAll(async () => expect(await system.stop()).toBe(0));

type Body = OpenAI.ChatCompletionCreateParamsNonStreaming;

function body(words: string, fields: object): Body {
  const messages = [{ role: "user" as const, content: words }];
  return { model: "nano", messages, max_tokens: 400, ...{ enable_thinking: false }, ...fields };
}

const jsonFormat = (schema: object) => ({ type: "json_schema" as const, json_schema: { name: "answer", schema } });

/** Long enough to be computed by a prefill rank. */
const LONG = `${"Hana has a red ball. Omar has a blue box. ".repeat(20)}Who has the ball?`;

const PERSON = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 12 },
    age: { type: "integer", minimum: 1, maximum: 99 },
    toys: { type: "array", items: { enum: ["ball", "box"] }, maxItems: 2 },
  },
  required: ["name", "age", "toys"],
  additionalProperties: false,
};

const WEATHER: OpenAI.ChatCompletionTool = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: {
      type: "object",
      properties: { city: { $ref: "#/$defs/place" }, unit: { enum: ["c", "f"] } },
      required: ["city", "unit"],
      $defs: { place: { type: "string", maxLength: 10 } },
    },
  },
};
const OTHER: OpenAI.ChatCompletionTool = {
  type: "function",
  function: {
    name: "add",
    parameters: { type: "object", properties: { n: { type: "integer", minimum: 0, maximum: 9 } }, required: ["n"] },
  },
};

test("answers to random schemas parse and are valid wherever they end by themselves, and nearly all do", async () => {
  const random = fakeRandom(7);
  const maker = new SchemaMaker(() => random.uniform(), true);
  const schemas = Array.from({ length: 500 }, () => maker.schema());
  const ends: string[] = [];
  const next = schemas.entries();
  const asker = async () => {
    for (const [seed, schema] of next) {
      const prompt = seed % 10 === 0 ? LONG : `Tell me about number ${seed}.`;
      const answer = await client.chat.completions.create(
        body(prompt, { seed, temperature: 1, response_format: jsonFormat(schema) }),
      );
      const { finish_reason: reason, message } = answer.choices[0]!;
      ends.push(reason);
      if (reason === "stop") expect(faultOf(schema, message.content!), JSON.stringify(schema)).toBeNull();
    }
  };
  await Promise.all(Array.from({ length: 8 }, asker));
  expect(ends).toHaveLength(500);
  expect(ends.filter((reason) => reason === "stop").length).toBeGreaterThanOrEqual(475);
  await expectNothingHeld(system);
}, 300_000);

test("thinking is free, the answer behind it is bound", async () => {
  const answer = await client.chat.completions.create(
    body("Where is Anna?", { enable_thinking: true, temperature: 0, guided_choice: ["in Rome", "at home"] }),
  );
  const message = answer.choices[0]!.message as { content: string; reasoning_content?: string };
  expect(message.reasoning_content!.length).toBeGreaterThan(3);
  expect(["in Rome", "at home"]).toContain(message.content);
});

test("a stream of a long prompt's answer is the same JSON, with the same seed", async () => {
  const fields = { seed: 4, temperature: 1, response_format: jsonFormat(PERSON) };
  const whole = await client.chat.completions.create(body(LONG, fields));
  let streamed = "";
  const stream = await client.chat.completions.create({ ...body(LONG, fields), stream: true });
  for await (const chunk of stream) streamed += chunk.choices[0]?.delta.content ?? "";
  expect(faultOf(PERSON, streamed)).toBeNull();
  expect(streamed).toBe(whole.choices[0]!.message.content);
});

test("a required call is one of the tools, a named one that tool, with arguments by its schema", async () => {
  const fields = { tools: [WEATHER, OTHER], temperature: 1 };
  const names = new Set<string>();
  for (let seed = 0; seed < 12; seed++) {
    const answer = await client.chat.completions.create(
      body("How is the weather?", { ...fields, seed, tool_choice: "required" }),
    );
    const { message, finish_reason } = answer.choices[0]!;
    expect(finish_reason).toBe("tool_calls");
    expect(message.tool_calls).toHaveLength(1);
    const { name, arguments: given } = (message.tool_calls![0] as OpenAI.ChatCompletionMessageFunctionToolCall)
      .function;
    names.add(name);
    expect(faultOf((name === "add" ? OTHER : WEATHER).function.parameters!, given)).toBeNull();
  }
  const named = await client.chat.completions.create(
    body("How is the weather?", { ...fields, tool_choice: { type: "function", function: { name: "add" } } }),
  );
  expect(named.choices[0]!.message.tool_calls).toMatchObject([{ function: { name: "add" } }]);
  expect(names.size).toBeGreaterThan(0);
});

test("a stream whose worker is killed goes on by the same grammar", async () => {
  const LIST = { type: "array", items: { type: "string", minLength: 8, maxLength: 8 }, minItems: 60, maxItems: 60 };
  const fields = { seed: 9, temperature: 1, max_tokens: 1_500, response_format: jsonFormat(LIST) };
  const { data: stream, response } = await client.chat.completions
    .create({ ...body("Tell me names.", fields), stream: true })
    .withResponse();
  const ranks = await system.ready("decode", 2);
  const victim = ranks.find((rank) => rank.workerId === response.headers.get("x-margay-decode"));
  let text = "";
  let chunks = 0;
  let finish: string | null = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    finish = chunk.choices[0]?.finish_reason ?? finish;
    if (++chunks === 5) process.kill(victim!.pid, "SIGKILL");
  }
  expect(chunks).toBeGreaterThan(5);
  expect(finish).toBe("stop");
  expect(faultOf(LIST, text)).toBeNull();
  const again = await client.chat.completions.create(body("Tell me names.", fields));
  expect(again.choices[0]!.message.content).toBe(text);
  await system.ready("decode", 2);
  await expectNothingHeld(system);
}, 180_000);

test("what can't be kept is refused by name, and hurts nobody", async () => {
  const refused = (fields: object) =>
    client.chat.completions.create(body("Hi", fields)).catch((error: unknown) => error);
  const param = (one: string) => expect.objectContaining({ status: 400, param: one });
  expect(await refused({ response_format: jsonFormat({ type: "array", uniqueItems: true }) })).toEqual(
    param("response_format.json_schema.schema.uniqueItems"),
  );
  expect(await refused({ guided_grammar: "root ::= (((" })).toEqual(param("guided_grammar"));
  expect(await refused({ guided_regex: "((((a{1,200}){1,200}){1,200}){1,200})" })).toEqual(param("guided_regex"));
  expect(await refused({ guided_regex: "ab{1,3}" })).toMatchObject({ choices: [{ finish_reason: "stop" }] });
});
