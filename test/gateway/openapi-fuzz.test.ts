import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import { expect, test } from "vitest";
import { answering } from "../support/fake-flow.ts";
import { type Harness, nanoModel, startHarness } from "../support/gateway-harness.ts";
import { JUNK, mutate, randomOf } from "../support/junk.ts";
import { type Schema, SchemaValues } from "../support/schema-values.ts";

interface Parameter {
  readonly name: string;
  readonly in: "path" | "query" | "header";
  readonly schema: Schema;
}
type Content = Readonly<Record<string, { readonly schema: Schema }>>;
interface Operation {
  readonly parameters?: readonly Parameter[];
  readonly requestBody?: { readonly content: Content };
  readonly responses: Readonly<Record<string, { readonly content: Content }>>;
}
interface Document {
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>> & { readonly parameters?: never }>>;
  readonly components: { readonly schemas: Readonly<Record<string, Schema>> };
}

const ROUNDS = 40;
const { tokenizer } = await nanoModel();
const USUAL = {
  model: ["nano"],
  input: ["Hi", [{ role: "user", content: "Hi" }]],
  messages: [[{ role: "user", content: "Hi" }]],
  stream: [true, false],
  n: [1, 2],
  max_tokens: [5, 50],
  max_output_tokens: [5, 50],
  max_completion_tokens: [5],
  purpose: ["batch"],
  completion_window: ["24h"],
  metadata: [null, { a: "b" }],
  "expires_after[anchor]": [undefined],
  "expires_after[seconds]": [undefined],
};
/** Of a header: few of all numbers are one that it takes. */
const USUAL_HEADERS: Readonly<Record<string, readonly string[]>> = { "x-margay-thinkers": ["1", "2", "3"] };
/** Ids that a request may mean, by the name of what bears them. */
const ID = /"id":"((?:resp|batch)_[0-9a-f]{24}|file-[0-9a-f]{24})"/;

/** Sends requests made from the document and checks that the answers are those of the document. */
class Fuzzer {
  readonly statuses = new Map<string, number>();
  readonly #harness: Harness;
  readonly #random = randomOf(20_261_124);
  readonly #values: SchemaValues;
  readonly #validators = new Map<string, ValidateFunction>();
  readonly #ajv = new Ajv2020({ strict: false });
  /** Ids of stored responses, files and batches: some requests are to meet them. */
  readonly #ids: string[] = [];

  constructor(harness: Harness, document: Document) {
    this.#harness = harness;
    this.#values = new SchemaValues(document.components.schemas, this.#random, USUAL);
    this.#ajv.addSchema(document, "document");
  }

  async send(path: string, method: string, operation: Operation, ofPath: readonly Parameter[]): Promise<void> {
    const parameters = [...ofPath, ...(operation.parameters ?? [])];
    const query = new URLSearchParams();
    const headers: Record<string, string> = {};
    let url = path;
    for (const { name, in: where, schema } of parameters) {
      if (where === "path") url = url.replace(`{${name}}`, encodeURIComponent(this.#segment()));
      else if (this.#random(2) === 0) continue;
      else if (where === "query") query.append(name, this.#word(schema));
      else headers[name] = this.#headerValue(name, schema);
    }
    const schema = operation.requestBody?.content["application/json"]?.schema;
    let body: unknown;
    if (schema !== undefined) {
      body = this.#values.of(schema);
      for (let times = this.#random(3); times > 0; times--) body = mutate(body, this.#random);
    }
    this.#name(body);
    const form = operation.requestBody?.content["multipart/form-data"]?.schema;
    const written = form !== undefined ? this.#form(form) : body === undefined ? null : JSON.stringify(body);
    if (form === undefined) headers["content-type"] = "application/json";
    const told = written instanceof FormData ? JSON.stringify([...written]) : written;
    const asked = `${method.toUpperCase()} ${url}?${query} ${told}`;
    const response = await fetch(`${this.#harness.url}${url}?${query}`, { method, headers, body: written });
    await this.#check(operation, response, `${method} ${path}`, asked);
  }

  async #check(operation: Operation, response: Response, name: string, asked: string): Promise<void> {
    const { status } = response;
    const text = await response.text();
    const key = `${name} ${status < 400 ? "answered" : "refused"}`;
    this.statuses.set(key, (this.statuses.get(key) ?? 0) + 1);
    expect(status < 500 || status === 503, `${status} to ${asked}: ${text}`).toBe(true);
    const type = response.headers.get("content-type")?.split(";")[0] ?? "none";
    const content = (operation.responses[status] ?? operation.responses.default)!.content;
    expect(Object.keys(content), `${status} ${type} to ${asked}`).toContain(type);
    const { schema } = content[type]!;
    if (type === "application/json") this.#expectValid(schema, JSON.parse(text), asked);
    if (type === "text/event-stream" && schema.type !== "string") {
      for (const [, data] of text.matchAll(/^data: (\{.*)$/gm)) this.#expectValid(schema, JSON.parse(data!), asked);
    }
    const id = ID.exec(text)?.[1];
    if (id !== undefined && status === 200) this.#ids.push(id);
  }

  #expectValid(schema: Schema, value: unknown, asked: string): void {
    const written = JSON.stringify(schema).replaceAll('"#/', '"document#/');
    const validate = this.#validators.get(written) ?? this.#ajv.compile(JSON.parse(written) as object);
    this.#validators.set(written, validate);
    const said = () => `${asked} -> ${JSON.stringify(value)}: ${JSON.stringify(validate.errors)}`;
    if (validate(value) !== true) throw new Error(said());
  }

  /** A form of the schema's fields, some of which are mutated; a file is now and then a real one. */
  #form(schema: Schema): FormData {
    const form = new FormData();
    const fields = this.#values.of(schema) as Readonly<Record<string, unknown>>;
    for (const [name, value] of Object.entries({ file: "", ...fields })) {
      if (value === undefined) continue;
      const told = this.#random(10) === 0 ? mutate(value, this.#random) : value;
      const text = typeof told === "string" ? told : (JSON.stringify(told) ?? "");
      const body = { model: "nano", prompt: "Hi" };
      const line = JSON.stringify({ custom_id: "a", method: "POST", url: "/v1/completions", body });
      if (name !== "file" || this.#random(10) === 0) form.append(name, text);
      else form.append(name, new File([this.#random(2) === 0 ? line : text], "in.jsonl"));
    }
    return form;
  }

  /** A file that is there, in place of the most that name none. */
  #name(body: unknown): void {
    const known = this.#ids.filter((id) => id.startsWith("file-"));
    if (typeof body !== "object" || body === null || !("input_file_id" in body) || known.length === 0) return;
    if (this.#random(4) > 0) body.input_file_id = known[this.#random(known.length)];
  }

  #segment(): string {
    const known = this.#ids[this.#random(this.#ids.length || 1)];
    if (known !== undefined && this.#random(3) > 0) return known;
    return ["nano", "resp_none", `resp_${"0".repeat(24)}`, "%", "..", "a/b", "é", "*", ">"][this.#random(9)]!;
  }

  #headerValue(name: string, schema: Schema): string {
    const usual = USUAL_HEADERS[name];
    if (usual !== undefined && this.#random(3) > 0) return usual[this.#random(usual.length)]!;
    return this.#word(schema).replace(/[^\x20-\x7e]/g, "?");
  }

  #word(schema: Schema): string {
    const value = this.#random(4) === 0 ? JUNK[this.#random(JUNK.length)] : this.#values.of(schema);
    return typeof value === "string" ? value : (JSON.stringify(value) ?? "");
  }
}

test("whatever is sent to any documented operation, the answer is one that the document has, and no 5xx but 503", async () => {
  await using harness = await startHarness(answering(tokenizer.encode("Hello you.</longcat_s>"), 2));
  const document = (await (await fetch(`${harness.url}/openapi.json`)).json()) as Document;
  const fuzzer = new Fuzzer(harness, document);
  for (let round = 0; round < ROUNDS; round++) {
    for (const [path, { parameters = [], ...operations }] of Object.entries(document.paths)) {
      for (const [method, operation] of Object.entries(operations)) {
        if (
          operation.requestBody === undefined &&
          operation.parameters === undefined &&
          round > 1 &&
          !path.includes("{")
        )
          continue;
        await fuzzer.send(path, method, operation as Operation, parameters);
      }
    }
  }
  for (const [path, operations] of Object.entries(document.paths)) {
    for (const method of ["get", "post"].filter((verb) => operations[verb]?.requestBody !== undefined)) {
      for (const way of ["answered", "refused"])
        expect(fuzzer.statuses.get(`${method} ${path} ${way}`), `${method} ${path} ${way}`).toBeGreaterThan(0);
    }
  }
}, 120_000);
