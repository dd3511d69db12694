import { type Constraint, type Grammar, MAX_GRAMMAR_CHARACTERS, maskOf } from "#protocol/constraint.ts";
import { literal } from "../chat/schema/json-literal.ts";
import { schemaGrammar } from "../chat/schema/schema-grammar.ts";
import type { ServedModel } from "../chat/served-model.ts";
import { SPELLED_TAGS } from "../chat/tags.ts";
import type { Tool, ToolChoice } from "./chat-schema.ts";
import { refuse } from "./http-errors.ts";
import type { SamplingFields } from "./sampling-schema.ts";
import type { StructuredFields } from "./structured-schema.ts";

export interface Vetted {
  /** Why the grammar can't be used; null: it can. */
  readonly fault: string | null;
  /** What a text of it may begin with, a bit per token; null: not known. */
  readonly first: Uint32Array | null;
}

/** `ends`: tokens that may stand behind a text of the grammar. */
export type Vet = (model: ServedModel, grammar: Grammar, ends: readonly number[]) => Promise<Vetted>;

interface Asked {
  readonly grammar: Grammar;
  /** The field that asks. */
  readonly param: string;
  /** Tokens around the text. */
  readonly prefix: readonly number[];
  readonly suffix: readonly number[];
}

/** What a chat brings beside the fields. */
export interface ChatShape {
  readonly tools: readonly Tool[] | null;
  readonly choice: ToolChoice | null;
  readonly startsInReasoning: boolean;
}

/**
 * What the answer is bound to; null: nothing. Throws `invalid_request` naming the field, for a grammar that can't be kept
 * as well.
 */
export async function constraintOf(
  vet: Vet,
  model: ServedModel,
  fields: SamplingFields,
  chat: ChatShape | null,
): Promise<Constraint | null> {
  const asked = onlyOne([...formatAsked(fields), ...callAsked(model, chat)]);
  if (asked === null) return null;
  const { param, grammar, prefix, suffix } = asked;
  if (fields.ignore_eos === true) throw refuse("ignore_eos", `must not be true together with ${param}`);
  if ((fields.min_tokens ?? 0) > 0) throw refuse("min_tokens", `must be left out together with ${param}`);
  if (chat !== null && chat.tools !== null && suffix.length === 0) {
    throw refuse(param, 'is not supported together with tools, unless tool_choice is "none"');
  }
  if (grammar.text.length > MAX_GRAMMAR_CHARACTERS)
    throw refuse(param, "is too large: its grammar has more than 65536 characters");
  const ends = [...model.eosTokens, ...(fields.stop_token_ids ?? [])];
  const { fault, first } = await vet(model, grammar, suffix.length > 0 ? suffix.slice(0, 1) : ends);
  if (fault !== null) throw refuse(param, `can't be kept: ${fault}`);
  const reasons = chat?.startsInReasoning === true;
  const words = Math.ceil(model.vocabSize / 32);
  const begins = reasons
    ? maskOf(words, ends, "all but")
    : prefix.length > 0
      ? maskOf(words, [prefix[0]!], "only")
      : first;
  return {
    freeUntil: reasons ? thinkEnd(model, param) : null,
    // The newline behind the closing tag belongs to it.
    prefix: Int32Array.from([...(reasons ? model.tokenizer.encodePlain("\n") : []), ...prefix]),
    grammar,
    suffix: Int32Array.from(suffix),
    ends: Int32Array.from(ends),
    first: begins === null ? null : Int32Array.from(begins),
  };
}

function onlyOne(asked: readonly Asked[]): Asked | null {
  const [first, second] = asked;
  if (first !== undefined && second !== undefined)
    throw refuse(second.param, `must be left out together with ${first.param}`);
  return first ?? null;
}

function formatAsked(fields: StructuredFields): Asked[] {
  const asked: Asked[] = [];
  const ask = (param: string, grammar: Grammar) => void asked.push({ grammar, param, prefix: [], suffix: [] });
  const ebnf = (text: string): Grammar => ({ kind: "ebnf", text });
  const askSchema = (schema: unknown, param: string) => ask(param, ebnf(schemaGrammar(schema, param)));
  const { response_format: format, structured_outputs: structured } = fields;
  if (format?.type === "json_object") askSchema({ type: "object" }, "response_format");
  if (format?.type === "json_schema") {
    askSchema(format.json_schema.schema ?? { type: "object" }, "response_format.json_schema.schema");
  }
  const vllm = [
    ["guided_json", "structured_outputs.json", fields.guided_json, structured?.json],
    ["guided_regex", "structured_outputs.regex", fields.guided_regex, structured?.regex],
    ["guided_choice", "structured_outputs.choice", fields.guided_choice, structured?.choice],
    ["guided_grammar", "structured_outputs.grammar", fields.guided_grammar, structured?.grammar],
  ] as const;
  for (const [older, newer, ...values] of vllm) {
    for (const [i, value] of values.entries()) {
      if (value === null || value === undefined) continue;
      const param = i === 0 ? older : newer;
      if (older === "guided_json") askSchema(parsedSchema(value, param), param);
      else if (older === "guided_regex") ask(param, { kind: "regex", text: value as string });
      else if (older === "guided_grammar") ask(param, ebnf(value as string));
      else ask(param, ebnf(`root ::= ${(value as readonly string[]).map(literal).join(" | ")}`));
    }
  }
  if (structured?.json_object === true) askSchema({ type: "object" }, "structured_outputs.json_object");
  return asked;
}

/** vLLM takes a schema as JSON text too. */
function parsedSchema(value: unknown, param: string): unknown {
  if (typeof value !== "string") return value;
  try {
    return JSON.parse(value) as unknown;
  } catch {
    throw refuse(param, "must be a JSON schema, or its JSON text");
  }
}

/** A forced call has the form `{"name": ..., "arguments": ...}` between the tags of a call. */
function callAsked(model: ServedModel, chat: ChatShape | null): Asked[] {
  const { tools, choice } = chat ?? { tools: null, choice: null };
  if (choice === null || choice === "auto" || choice === "none") return [];
  if (tools === null) throw refuse("tool_choice", "must be left out without tools");
  const named = typeof choice === "string" ? null : choice.function.name;
  const callable = tools.filter((tool) => named === null || tool.function.name === named);
  if (callable.length === 0) throw refuse("tool_choice.function.name", "must be the name of one of the tools");
  const { ids } = model.tokenizer.markers;
  const [open, close] = [ids.get(SPELLED_TAGS.callOpen), ids.get(SPELLED_TAGS.callClose)];
  if (open === undefined || close === undefined) {
    throw refuse("tool_choice", `can't be kept: ${model.name} has no tokens for the tags of a call`);
  }
  const calls = callable.map((tool) => {
    const param = `tools[${tools.indexOf(tool)}].function.parameters`;
    return { name: tool.function.name, rules: schemaGrammar(tool.function.parameters ?? { type: "object" }, param) };
  });
  return [
    { grammar: { kind: "ebnf", text: callGrammar(calls) }, param: "tool_choice", prefix: [open], suffix: [close] },
  ];
}

/** One call of many, each with arguments by rules of its own. */
function callGrammar(calls: readonly { readonly name: string; readonly rules: string }[]): string {
  const bodies = calls.map(
    ({ name }, i) => `${literal(`{"name": ${JSON.stringify(name)}, "arguments": `)} call${i}_root "}"`,
  );
  const rules = calls.map(({ rules }, i) => renamed(rules, `call${i}_`));
  return [...rules, `root ::= ${bodies.join(" | ")}`].join("\n");
}

/** A grammar whose rules have other names: all names of rules stand outside literals and classes. */
function renamed(rules: string, prefix: string): string {
  const names = new Set([...rules.matchAll(/^(\w+) ::=/gm)].map((match) => match[1]!));
  return rules.replace(/"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\w+/g, (part) =>
    names.has(part) ? prefix + part : part,
  );
}

function thinkEnd(model: ServedModel, param: string): number {
  const id = model.tokenizer.markers.ids.get(SPELLED_TAGS.thinkClose);
  if (id === undefined)
    throw refuse(param, `can't be kept while thinking: ${model.name} has no token for the end of a thought`);
  return id;
}
