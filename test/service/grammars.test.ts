import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Grammar } from "#protocol/constraint.ts";
import { systemClock } from "#service/clock.ts";
import { Grammars, type GrammarText } from "#service/grammar/grammars.ts";
import { silentLogger } from "#service/logger.ts";
import { schemaGrammar } from "../../control-plane/chat/schema/schema-grammar.ts";
import { Tokenizer } from "../../control-plane/tokenizer/tokenizer.ts";

const folder = fileURLToPath(new URL("../../models/nano", import.meta.url));
const tokenizer = await Tokenizer.load(folder);
const END = 2;

let grammars: Grammars;
beforeEach(() => {
  grammars = new Grammars({
    clock: systemClock,
    logger: silentLogger,
    folder,
    vocabSize: 2048,
    vetMs: 15_000,
    maskMs: 15_000,
  });
});
afterEach(() => grammars.close());

const schema = (value: unknown): Grammar => ({ kind: "ebnf", text: schemaGrammar(value, "schema") });
const allowed = (mask: Uint32Array): number[] =>
  Array.from({ length: mask.length * 32 }, (_, id) => id).filter((id) => ((mask[id >> 5]! >>> (id & 31)) & 1) === 1);

/** Follows a text; `next` resolves with the ids allowed next, or the fault. */
function follow(
  grammar: Grammar,
  tokens: readonly number[] = [],
): GrammarText & { next(): Promise<number[] | string> } {
  const waiting: ((outcome: number[] | string) => void)[] = [];
  const told: (number[] | string)[] = [];
  const tell = (outcome: number[] | string) => {
    const first = waiting.shift();
    if (first === undefined) told.push(outcome);
    else first(outcome);
  };
  const text = grammars.open(grammar, [END], tokens, { onMask: (mask) => tell(allowed(mask)), onFault: tell });
  return {
    ...text,
    next: () =>
      told.length > 0 ? Promise.resolve(told.shift()!) : new Promise((resolve) => void waiting.push(resolve)),
  };
}

test("a mask allows the tokens that can go on, and the end where the text may end", async () => {
  const text = follow({ kind: "regex", text: "(yes|no)!?" });
  const first = (await text.next()) as number[];
  expect(
    first.map((id) => tokenizer.tokenText(id)).every((one) => "yes!".startsWith(one) || "no!".startsWith(one)),
  ).toBe(true);
  expect(first).not.toContain(END);
  let next: number[] = first;
  for (const id of tokenizer.encodePlain("no")) {
    expect(next).toContain(id);
    text.push(id);
    next = (await text.next()) as number[];
  }
  expect(next.map((id) => (id === END ? "end" : tokenizer.tokenText(id))).sort()).toEqual(["!", "end"]);
  text.close();
});

test("tokens that are there already are followed first", async () => {
  const tokens = [...tokenizer.encodePlain("ab")];
  const text = follow({ kind: "ebnf", text: 'root ::= "ab" [0-9] "c"' }, tokens);
  const next = (await text.next()) as number[];
  expect(next.length).toBeGreaterThan(0);
  expect(next.every((id) => /^[0-9]c?$/.test(tokenizer.tokenText(id)))).toBe(true);
});

test("special tokens and control characters are part of no JSON", async () => {
  const text = follow(schema({ type: "string", minLength: 1 }));
  const start = (await text.next()) as number[];
  const quote = start.find((id) => tokenizer.tokenText(id) === '"')!;
  text.push(quote);
  const next = (await text.next()) as number[];
  const texts = next.map((id) => tokenizer.tokenText(id));
  expect(texts.length).toBeGreaterThan(500);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not be there
  expect(texts.filter((one) => /[\u0000-\u001f]/.test(one))).toEqual([]);
  expect(next.filter((id) => tokenizer.markers.ids.get(tokenizer.tokenText(id)) === id)).toEqual([]);
});

test("a token outside the grammar ends the text with a fault, and no other", async () => {
  const wrong = follow({ kind: "regex", text: "a{40}" });
  const right = follow({ kind: "regex", text: "b{40}" });
  await wrong.next();
  await right.next();
  wrong.push(tokenizer.encodePlain("z")[0]!);
  expect(await wrong.next()).toBe("a token is not of the grammar");
  right.push(tokenizer.encodePlain("b")[0]!);
  expect(((await right.next()) as number[]).length).toBeGreaterThan(0);
});

test("grammars are vetted: what can't be read is told in words, and hurts no later one", async () => {
  expect(await grammars.vet(schema({ type: "integer" }))).toBeNull();
  expect(await grammars.vet({ kind: "ebnf", text: "root ::= (((" })).toMatch(/EBNF parser error/);
  expect(await grammars.vet({ kind: "regex", text: "(?=a)b" })).toMatch(/Lookahead/);
  expect(await grammars.vet(schema({ type: "boolean" }))).toBeNull();
});

test("vets that stand behind one with a fault are answered, and so is the same one again", async () => {
  const verdicts = await Promise.all([
    grammars.vet({ kind: "ebnf", text: "root ::= (" }),
    grammars.vet(schema({ type: "null" })),
    grammars.vet({ kind: "ebnf", text: 'root ::= "a"' }),
  ]);
  expect(verdicts[0]).toMatch(/parser error/);
  expect(verdicts.slice(1)).toEqual([null, null]);
  expect(await grammars.vet({ kind: "ebnf", text: "root ::= (" })).toBe(verdicts[0]);
});

test("a grammar that takes too long to read is refused in time", async () => {
  await grammars.close();
  grammars = new Grammars({
    clock: systemClock,
    logger: silentLogger,
    folder,
    vocabSize: 2048,
    vetMs: 300,
    maskMs: 15_000,
  });
  const hostile = { kind: "regex", text: "((((a{1,200}){1,200}){1,200}){1,200})" } as const;
  expect(await grammars.vet(hostile)).toMatch(/longer than 300 ms|too|large|limit|exceed/i);
});

test("where no thread can be opened a vet fails, is not remembered as a verdict, and does not wait for ever", async () => {
  await grammars.close();
  const parts = { clock: systemClock, logger: silentLogger, vocabSize: 2048, vetMs: 15_000, maskMs: 15_000 };
  grammars = new Grammars({ ...parts, folder: "/nowhere" });
  const grammar = schema({ type: "null" });
  for (let i = 0; i < 2; i++) await expect(grammars.vet(grammar)).rejects.toMatchObject({ code: "internal" });
});

test("a vet that is under way when the server stops is no verdict", async () => {
  const verdict = grammars.vet(schema({ type: "null" }));
  verdict.catch(() => {});
  await grammars.close();
  await expect(verdict).rejects.toMatchObject({ code: "shutting_down" });
});
