import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { GrammarLibrary } from "#service/grammar/grammar-library.ts";
import { patternGrammar } from "../../control-plane/chat/schema/pattern-grammar.ts";
import { schemaGrammar } from "../../control-plane/chat/schema/schema-grammar.ts";
import { wholeRange } from "../../control-plane/chat/schema/whole-range.ts";
import { Tokenizer } from "../../control-plane/tokenizer/tokenizer.ts";
import { fakeRandom } from "../support/fake-clock.ts";
import { faultOf, SchemaMaker } from "../support/schemas.ts";

const folder = fileURLToPath(new URL("../../models/nano", import.meta.url));
const tokenizer = await Tokenizer.load(folder);
const library = await GrammarLibrary.open(folder, tokenizer.vocabSize);
const END = 2;

/** A text that the grammar allows, chosen token by token at random; null: it was not done after 400. */
async function randomText(text: string, uniform: () => number): Promise<string | null> {
  const matcher = await library.follow({ kind: "ebnf", text }, [END]);
  try {
    const tokens: number[] = [];
    while (tokens.length < 400) {
      const mask = (await matcher.mask())!;
      const allowed = Array.from({ length: tokenizer.vocabSize }, (_, id) => id).filter(
        (id) => ((mask[id >> 5]! >>> (id & 31)) & 1) === 1,
      );
      expect(allowed.length).toBeGreaterThan(0);
      const ends = allowed.includes(END) && uniform() < 0.5;
      if (ends) return tokenizer.decode(tokens);
      const token = allowed[Math.floor(uniform() * allowed.length)]!;
      if (token === END) return tokenizer.decode(tokens);
      expect(matcher.accept(token)).toBe(true);
      tokens.push(token);
    }
    return null;
  } finally {
    matcher.dispose();
  }
}

/** Whether the grammar of a schema has this text. */
async function has(schema: object, text: string): Promise<boolean> {
  const matcher = await library.follow({ kind: "ebnf", text: schemaGrammar(schema, "schema") }, [END]);
  try {
    return [...tokenizer.encodePlain(text)].every((token) => matcher.accept(token)) && matcher.accept(END);
  } finally {
    matcher.dispose();
  }
}

test("whatever a schema's grammar allows is JSON that the schema accepts", async () => {
  const random = fakeRandom(11);
  const maker = new SchemaMaker(() => random.uniform(), false);
  let whole = 0;
  for (let i = 0; i < 150; i++) {
    const schema = maker.schema();
    const grammar = schemaGrammar(schema, "schema");
    for (let k = 0; k < 3; k++) {
      const text = await randomText(grammar, () => random.uniform());
      if (text === null) continue;
      whole++;
      expect(faultOf(schema, text), JSON.stringify(schema)).toBeNull();
    }
  }
  expect(whole).toBeGreaterThan(350);
});

describe("a grammar has", () => {
  const person = {
    type: "object",
    properties: {
      name: { type: "string" },
      age: { type: "integer", minimum: 0 },
      tags: { type: "array", items: { type: "string" } },
    },
    required: ["name"],
  };
  test.each([
    [person, '{"name": "Ann"}'],
    [person, '{"name": "Ann", "age": 31, "tags": []}'],
    [person, '{"name": "Ann", "tags": ["a", "b\\n"]}'],
    [
      {
        $ref: "#/$defs/tree",
        $defs: { tree: { type: "object", properties: { kids: { type: "array", items: { $ref: "#/$defs/tree" } } } } },
      },
      '{"kids": [{"kids": []}, {}]}',
    ],
    [{ $ref: "#/$defs/a~1b", $defs: { "a/b": { const: "x" } } }, '"x"'],
    [
      {
        oneOf: [
          { type: "object", properties: { k: { const: 1 } }, required: ["k"] },
          { type: "object", properties: { k: { const: 2 } }, required: ["k"] },
        ],
      },
      '{"k": 2}',
    ],
    [{ type: "number", minimum: -1, exclusiveMaximum: 2 }, "1.95"],
    [{ type: "number", minimum: -1, exclusiveMaximum: 2 }, "-0.5"],
    [{ type: "array", prefixItems: [{ type: "integer" }], maxItems: 3 }, '[1, {"a": null}, "x"]'],
    [{}, '[{"a": [1.5e3, true]}, "é"]'],
  ])("%j: %s", async (schema, text) => {
    expect(faultOf(schema, text)).toBeNull();
    expect(await has(schema, text)).toBe(true);
  });

  test.each([
    [{ type: "number", minimum: -1, exclusiveMaximum: 2 }, "2"],
    [{ type: "number", exclusiveMinimum: 0 }, "0"],
    [{ type: "string" }, '"a\tb"'],
    [{ type: "string", maxLength: 2 }, '"abc"'],
    [person, '{"age": 3}'],
  ])("not %j: %s", async (schema, text) => {
    expect(await has(schema, text)).toBe(false);
  });
});

test("a range of whole numbers has each of them and no other", () => {
  const random = fakeRandom(5);
  const within = (limit: number) => Math.floor(random.uniform() * limit);
  for (let i = 0; i < 300; i++) {
    const low = random.uniform() < 0.2 ? null : BigInt(within(4_000) - 2_000);
    const high = random.uniform() < 0.2 ? null : (low ?? -1_000n) + BigInt(within(3_000) - 20);
    // The EBNF of a range is a regular expression but for its quotes and spaces.
    const ways = wholeRange(low, high).map((way) => way.replaceAll(/[" ]/g, ""));
    const matches = new RegExp(`^(${ways.length === 0 ? "(?!)" : ways.join("|")})$`);
    for (let k = 0; k < 200; k++) {
      const value = within(12_000) - 6_000;
      const inside = (low === null || BigInt(value) >= low) && (high === null || BigInt(value) <= high);
      expect(matches.test(String(value)), `${value} in ${low}..${high}`).toBe(inside);
    }
  }
});

describe("refused by name", () => {
  test.each([
    [{ type: "array", uniqueItems: true }, "schema.uniqueItems"],
    [{ type: "object", properties: { a: { not: {} } } }, "schema.properties.a.not"],
    [{ allOf: [{ type: "string" }, { maxLength: 3 }] }, "schema.allOf"],
    [{ oneOf: [{ type: "integer" }, { type: "number" }] }, "schema.oneOf"],
    [{ type: "number", multipleOf: 2 }, "schema.multipleOf"],
    [{ type: "number", minimum: 0.5 }, "schema.minimum"],
    [{ type: "integer", minimum: 5, maximum: 4 }, "schema"],
    [{ type: "string", format: "zebra" }, "schema.format"],
    [{ type: "string", pattern: "(?=a)b" }, "schema.pattern"],
    [{ type: "string", pattern: "a", maxLength: 3 }, "schema.maxLength"],
    [{ type: "string", minLength: 3, maxLength: 2 }, "schema.minLength"],
    [{ type: "wrong" }, "schema.type"],
    [{ enum: [1], type: "string" }, "schema.enum"],
    [{ $ref: "#/$defs/none" }, "schema.$ref"],
    [{ $ref: "http://x/y" }, "schema.$ref"],
    [{ $ref: "#", type: "object" }, "schema.type"],
    [{ type: "object", properties: { a: {} }, required: ["b"], additionalProperties: false }, "schema.required"],
    [{ anyOf: [] }, "schema.anyOf"],
    [false, "schema"],
    ["x", "schema"],
  ])("%j", (schema, param) => {
    expect(() => schemaGrammar(schema, "schema")).toThrow(expect.objectContaining({ code: "invalid_request", param }));
  });

  test("a schema that nests or spreads without end", () => {
    let deep: unknown = { type: "null" };
    for (let i = 0; i < 80; i++) deep = { type: "array", items: deep };
    expect(() => schemaGrammar(deep, "schema")).toThrow(/64 deep/);
    const wide = { anyOf: Array.from({ length: 3_000 }, () => ({ type: "null" })) };
    expect(() => schemaGrammar(wide, "schema")).toThrow(/2000 subschemas/);
    expect(() => schemaGrammar({ $ref: "#" }, "schema")).toThrow(/come back to itself/);
  });
});

test.each(["(a", "a)", "[a", "a{2,1}", "a{9999}", "\\", "a**", "[z-a]", "\\bx", "(?<n>a)", "^[^é]$"])(
  "the pattern %s is refused with a sentence",
  (pattern) => {
    expect(() => patternGrammar(pattern, "character")).toThrow(/\w+ \w+/);
  },
);
