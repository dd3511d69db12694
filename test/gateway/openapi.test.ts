import { Ajv2020 } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { answering } from "../support/fake-flow.ts";
import { type Harness, nanoModel, startHarness } from "../support/gateway-harness.ts";

interface Operation {
  readonly operationId: string;
  readonly summary: string;
  readonly requestBody?: { readonly content: Readonly<Record<string, { readonly schema: object }>> };
  readonly responses: Readonly<
    Record<string, { readonly content?: Readonly<Record<string, { readonly schema: object }>> }>
  >;
}
interface Document {
  readonly openapi: string;
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components: { readonly schemas: Readonly<Record<string, object>> };
}

const { tokenizer } = await nanoModel();
let harness: Harness;
let document: Document;
const ajv = new Ajv2020({ strict: false, allErrors: true });
addFormats.default(ajv);

beforeAll(async () => {
  harness = await startHarness(answering(tokenizer.encode("Hello you.</longcat_s>")));
  document = (await (await fetch(`${harness.url}/openapi.json`)).json()) as Document;
  ajv.addSchema(document, "document");
});
afterAll(() => harness[Symbol.asyncDispose]());

/** The schema of what an operation answers with a status and a type. */
function schemaOf(path: string, method: string, status: number, type: string): object {
  const { responses } = document.paths[path]![method]!;
  const content = (responses[status] ?? responses.default)!.content!;
  const { schema } = content[type] ?? {};
  if (schema === undefined) throw new Error(`${method} ${path} documents no ${type} with ${status}`);
  const written = JSON.stringify(schema).replaceAll('"#/', '"document#/');
  return JSON.parse(written) as object;
}

function expectValid(schema: object, value: unknown): void {
  const validate = ajv.compile(schema);
  expect(validate(value), JSON.stringify(validate.errors)).toBe(true);
}

describe("the document", () => {
  test("has every route that is answered, and no other", () => {
    const documented = Object.entries(document.paths).flatMap(([path, operations]) =>
      ["get", "post", "delete"].filter((verb) => verb in operations).map((verb) => `${verb.toUpperCase()} ${path}`),
    );
    const answered = harness.gateway.routes
      .filter((route) => !/^(HEAD|OPTIONS) /.test(route))
      .map((route) => route.replace(/:(\w+)/g, "{$1}").replace("/v1/models/*", "/v1/models/{id}"));
    expect(documented.sort()).toEqual([...answered].sort());
  });

  test("has schemas that are valid and resolve, and operations with names of their own", () => {
    for (const [, name] of JSON.stringify(document).matchAll(/"#\/components\/schemas\/(\w+)"/g)) {
      expect(document.components.schemas).toHaveProperty(name!);
      ajv.compile({ $ref: `document#/components/schemas/${name}` });
    }
    const ids = Object.values(document.paths).flatMap((path) =>
      Object.values(path).flatMap(({ operationId }) => (operationId === undefined ? [] : [operationId])),
    );
    expect(new Set(ids).size).toBe(ids.length);
    expect(document.openapi).toBe("3.1.0");
    expect(document.components.schemas.ChatRequest).toMatchObject({ required: ["model", "messages"] });
    expect(document.components.schemas.CompletionRequest).toMatchObject({ required: ["model", "prompt"] });
  });

  test("is shown by a page that loads nothing else", async () => {
    const page = await fetch(`${harness.url}/docs`);
    expect(page.headers.get("content-type")).toContain("text/html");
    expect(page.headers.get("content-security-policy")).toContain("default-src 'none'");
    const html = await page.text();
    expect(html).toContain('fetch("openapi.json")');
    expect(html).not.toMatch(/(src|href)="(https?:)?\/\//);
    const script = /<script>([\s\S]*)<\/script>/.exec(html)![1]!;
    expect(() => new Function(script)).not.toThrow();
  });
});

const messages = [{ role: "user", content: "Hi" }];
const asked: readonly [string, string, object | null][] = [
  ["/v1/chat/completions", "post", { model: "nano", messages, logprobs: true, top_logprobs: 2 }],
  ["/v1/completions", "post", { model: "nano", prompt: "Once", logprobs: 1 }],
  ["/v1/responses", "post", { model: "nano", input: "Hi", instructions: "Be short.", user: "a" }],
  ["/v1/messages", "post", { model: "nano", messages, max_tokens: 20 }],
  ["/v1/messages/count_tokens", "post", { model: "nano", messages }],
  ["/tokenize", "post", { prompt: "Hi", return_token_strs: true }],
  ["/detokenize", "post", { tokens: [72, 73] }],
  ["/v1/models", "get", null],
  ["/livez", "get", null],
  ["/readyz", "get", null],
];

describe("real answers are of the document's shape:", () => {
  test.each(asked)("%s", async (path, method, body) => {
    const response = body === null ? await fetch(harness.url + path) : await harness.post(path, body);
    expect(response.status).toBe(200);
    expectValid(schemaOf(path, method, 200, "application/json"), await response.json());
    const request = document.paths[path]![method]!.requestBody;
    if (request === undefined) return;
    const written = JSON.stringify(request.content["application/json"]!.schema).replaceAll('"#/', '"document#/');
    expectValid(JSON.parse(written) as object, body);
    const refused = await harness.post(path, {});
    expect(refused.status).toBe(400);
    expectValid(schemaOf(path, method, 400, "application/json"), await refused.json());
  });

  test.each(asked.filter(([path]) => ["/v1/chat/completions", "/v1/completions", "/v1/responses"].includes(path)))(
    "every event of a streamed %s",
    async (path, method, body) => {
      const stream = await harness.post(path, { ...body, stream: true });
      const events = (await stream.text()).split("\n").filter((line) => line.startsWith("data: {"));
      expect(events.length).toBeGreaterThan(3);
      const validate = ajv.compile(schemaOf(path, method, 200, "text/event-stream"));
      for (const event of events)
        expect(validate(JSON.parse(event.slice(6))), JSON.stringify(validate.errors)).toBe(true);
    },
  );

  test("a stored response, its items, its cancellation and its end", async () => {
    const made = await harness.post("/v1/responses", { model: "nano", input: "Hi", background: true });
    const { id } = (await made.json()) as { id: string };
    const one = "/v1/responses/{response_id}";
    const get = async (suffix: string, method = "GET") =>
      (await fetch(`${harness.url}/v1/responses/${id}${suffix}`, { method })).json();
    expectValid(schemaOf(one, "get", 200, "application/json"), await get(""));
    expectValid(schemaOf(`${one}/input_items`, "get", 200, "application/json"), await get("/input_items"));
    expectValid(schemaOf(`${one}/cancel`, "post", 200, "application/json"), await get("/cancel", "POST"));
    expectValid(schemaOf(one, "delete", 200, "application/json"), await get("", "DELETE"));
    expectValid(schemaOf(one, "get", 404, "application/json"), await get(""));
  });
});

describe("tokens", () => {
  test("of a text are those of the tokenizer, and give the text back", async () => {
    const text = "Hällo, wörld <longcat_user> 🦊";
    const body = (await (await harness.post("/tokenize", { model: "nano", prompt: text })).json()) as {
      readonly tokens: number[];
    };
    expect(body).toEqual({
      ...{ count: tokenizer.encode(text).length, max_model_len: harness.model.contextLength, token_strs: null },
      tokens: [...tokenizer.encode(text)],
    });
    const back = await (await harness.post("/detokenize", { model: "nano", tokens: body.tokens })).json();
    expect(back).toEqual({ prompt: text });
  });

  test("of a conversation are its prompt's", async () => {
    const { tokens } = (await (await harness.post("/tokenize", { messages })).json()) as { readonly tokens: number[] };
    await harness.chat();
    expect(tokens).toEqual([...harness.flow.calls.at(-1)!.request.generation.tokens]);
  });

  test.each([
    ["/tokenize", {}, "prompt"],
    ["/tokenize", { prompt: "a", messages }, "messages"],
    ["/tokenize", { prompt: 3 }, "prompt"],
    ["/tokenize", { messages, add_generation_prompt: false }, "add_generation_prompt"],
    ["/tokenize", { prompt: "a", model: "none" }, "model"],
    ["/detokenize", { tokens: [1, -1] }, "tokens[1]"],
    ["/detokenize", { tokens: [1e6] }, "tokens[0]"],
    ["/detokenize", {}, "tokens"],
  ])("%s of %j is refused by name", async (path, body, param) => {
    const response = await harness.post(path, body);
    expect([400, 404]).toContain(response.status);
    expect(await response.json()).toMatchObject({ error: { param } });
  });
});
