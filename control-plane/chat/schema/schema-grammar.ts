import { MargayError } from "#protocol/errors.ts";
import { isObject } from "../json-value.ts";
import { areDisjoint } from "./disjoint.ts";
import { isOfType, literal, oneLine } from "./json-literal.ts";
import { type Bounds, numbersWithin, readBounds, wholesWithin } from "./number-bounds.ts";
import { patternGrammar } from "./pattern-grammar.ts";

/** Bounds of one schema: subschemas, how deep they nest, values of an `enum`, and lengths and counts. */
export const SCHEMA_LIMITS = { subschemas: 2_000, depth: 64, values: 1_000, count: 10_000 } as const;

type Schema = Readonly<Record<string, unknown>>;

/** Words of JSON Schema, and one of OpenAPI, that would be broken if they were passed over. */
const REFUSED = new Set(
  (
    "if then else not contains minContains maxContains uniqueItems multipleOf dependentRequired dependentSchemas " +
    "dependencies patternProperties propertyNames minProperties maxProperties unevaluatedProperties unevaluatedItems " +
    "additionalItems contentEncoding contentMediaType contentSchema $dynamicRef $dynamicAnchor $anchor nullable"
  ).split(" "),
);
const KNOWN = new Set(
  (
    "type enum const anyOf oneOf allOf $ref properties required additionalProperties items prefixItems minItems maxItems " +
    "minLength maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum"
  ).split(" "),
);

/** Formats of strings, as what stands between the quotes. */
const DAY = '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])';
const CLOCK =
  '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? ("Z" | [+\\-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])';
const OCTET = '("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9]{2} | [1-9] [0-9] | [0-9])';
const LABEL = "[a-zA-Z0-9] ([a-zA-Z0-9\\-]{0,20} [a-zA-Z0-9])?";
const FORMATS: Readonly<Record<string, string>> = {
  date: DAY,
  time: CLOCK,
  "date-time": `${DAY} "T" ${CLOCK}`,
  uuid: '[0-9a-f]{8} "-" [0-9a-f]{4} "-" [1-5] [0-9a-f]{3} "-" [89ab] [0-9a-f]{3} "-" [0-9a-f]{12}',
  ipv4: `${OCTET} "." ${OCTET} "." ${OCTET} "." ${OCTET}`,
  email: `[a-zA-Z0-9_]{1,32} ("." [a-zA-Z0-9_]{1,16})? "@" ${LABEL} ("." ${LABEL}){1,3}`,
  hostname: `${LABEL} ("." ${LABEL}){0,3}`,
};

const BASE: Readonly<Record<string, string>> = {
  character: '[^"\\\\\\x00-\\x1F] | "\\\\" ["\\\\/bfnrt]',
  whole: '"-"? ("0" | [1-9] [0-9]*)',
  fraction: '"." [0-9]+',
  part: '"." [0-9]* [1-9]',
  number: "whole fraction? ([eE] [+\\-]? [0-9]{1,2})?",
  text: '"\\"" character* "\\""',
  truth: '"true" | "false"',
  list: '"[]" | "[" any (", " any)* "]"',
  record: '"{}" | "{" text ": " any (", " text ": " any)* "}"',
  any: 'text | number | truth | "null" | list | record',
};
const TYPES: Readonly<Record<string, string>> = {
  string: "text",
  number: "number",
  integer: "whole",
  boolean: "truth",
  null: '"null"',
  array: "list",
  object: "record",
};

/**
 * An EBNF grammar (rule `root`) of JSON texts on one line that `schema` accepts; members stand in the schema's order.
 * Every text of it is valid. Not every valid text is in it: members that the schema merely tolerates are left out.
 * Throws `invalid_request` that names the word at fault below `param`, be it one that can't be kept (JSON Schema
 * 2020-12; what isn't of it is passed over).
 */
export function schemaGrammar(schema: unknown, param: string): string {
  return new SchemaWriter(schema, param).grammar();
}

class SchemaWriter {
  readonly #root: unknown;
  readonly #param: string;
  readonly #rules = new Map<string, string>(Object.entries(BASE));
  /** Rules of what `$ref` names, by its pointer. */
  readonly #named = new Map<string, string>();
  #subschemas = 0;

  constructor(root: unknown, param: string) {
    this.#root = root;
    this.#param = param;
  }

  grammar(): string {
    const root = this.#write(this.#root, "", 0);
    this.#rules.set("root", root);
    return [...this.#rules].map(([name, body]) => `${name} ::= ${body}`).join("\n");
  }

  /** An expression, in parentheses where it has alternatives. `at`: where the schema stands, `.properties.a`. */
  #write(schema: unknown, at: string, depth: number): string {
    if (++this.#subschemas > SCHEMA_LIMITS.subschemas)
      this.#refuse("", `must have at most ${SCHEMA_LIMITS.subschemas} subschemas`);
    if (depth > SCHEMA_LIMITS.depth) this.#refuse("", `must nest at most ${SCHEMA_LIMITS.depth} deep`);
    if (schema === true) return "any";
    if (!isObject(schema))
      this.#refuse(at, schema === false ? "must not be false: it accepts nothing" : "must be a JSON schema");
    for (const word of Object.keys(schema)) {
      if (REFUSED.has(word)) this.#refuse(`${at}.${word}`, "is not supported: leave it out");
    }
    const said = Object.keys(schema).filter((word) => KNOWN.has(word));
    if (schema.$ref !== undefined)
      return this.#only("$ref", said, at) ?? this.#reference(schema.$ref, `${at}.$ref`, depth);
    for (const word of ["anyOf", "oneOf", "allOf"] as const) {
      if (schema[word] !== undefined) return this.#only(word, said, at) ?? this.#combine(word, schema[word], at, depth);
    }
    if (schema.const !== undefined || schema.enum !== undefined) return this.#values(schema, said, at);
    const types = this.#typesOf(schema, at);
    const ways = types.map((type) => this.#typed(type, schema, at, depth));
    return ways.length === 1 ? ways[0]! : `(${ways.join(" | ")})`;
  }

  /** A word that stands for a whole schema takes no other beside it. */
  #only(word: string, said: readonly string[], at: string): null {
    const other = said.find((one) => one !== word);
    if (other !== undefined) this.#refuse(`${at}.${other}`, `is not supported beside ${word}`);
    return null;
  }

  #reference(ref: unknown, at: string, depth: number): string {
    if (typeof ref !== "string" || !/^#(\/|$)/.test(ref))
      this.#refuse(at, 'must point into this schema ("#/$defs/...")');
    const known = this.#named.get(ref);
    if (known !== undefined) return known;
    let target = this.#root;
    for (const part of ref.split("/").slice(1)) {
      const key = decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~");
      target =
        typeof target === "object" && target !== null && Object.hasOwn(target, key)
          ? (target as Schema)[key]
          : undefined;
    }
    if (target === undefined) this.#refuse(at, `must name something that is there: ${ref.slice(0, 100)} is not`);
    const name = `ref${this.#named.size}`;
    this.#named.set(ref, name);
    const body = this.#write(target, `(${ref})`, depth + 1);
    if (body === name) this.#refuse(at, "must not come back to itself with nothing between");
    this.#rules.set(name, body);
    return name;
  }

  #combine(word: "anyOf" | "oneOf" | "allOf", list: unknown, at: string, depth: number): string {
    const place = `${at}.${word}`;
    if (!Array.isArray(list) || list.length === 0) this.#refuse(place, "must be a list of at least one schema");
    if (word === "allOf" && list.length > 1) this.#refuse(place, "with more than one schema is not supported");
    if (word === "oneOf" && !areDisjoint(list)) {
      this.#refuse(
        place,
        "is supported only where the types, or a required constant member, tell the schemas apart: use anyOf",
      );
    }
    const ways = list.map((one, i) => this.#write(one, `${place}[${i}]`, depth + 1));
    return ways.length === 1 ? ways[0]! : `(${ways.join(" | ")})`;
  }

  #values(schema: Schema, said: readonly string[], at: string): string {
    const word = schema.enum === undefined ? "const" : "enum";
    const other = said.find((one) => one !== word && one !== "type");
    if (other !== undefined) this.#refuse(`${at}.${other}`, `is not supported beside ${word}`);
    const given = word === "const" ? [schema.const] : schema.enum;
    if (!Array.isArray(given) || given.length > SCHEMA_LIMITS.values) {
      this.#refuse(`${at}.${word}`, `must be a list of at most ${SCHEMA_LIMITS.values} values`);
    }
    const types = schema.type === undefined ? null : this.#typesOf(schema, at);
    const values = given.filter((value) => types === null || types.some((type) => isOfType(value, type)));
    if (values.length === 0) this.#refuse(`${at}.${word}`, "must have a value of the schema's type");
    return `(${values.map((value) => literal(oneLine(value))).join(" | ")})`;
  }

  #typesOf({ type }: Schema, at: string): readonly string[] {
    if (type === undefined) return ["any"];
    const types = [type].flat();
    const wrong = types.find((one) => typeof one !== "string" || !Object.hasOwn(TYPES, one));
    if (wrong !== undefined || types.length === 0)
      this.#refuse(`${at}.type`, `must be of ${Object.keys(TYPES).join(", ")}`);
    return types as string[];
  }

  #typed(type: string, schema: Schema, at: string, depth: number): string {
    if (type === "any") return this.#untyped(schema, at, depth);
    if (type === "string") return this.#string(schema, at);
    if (type === "integer") return this.#bounded(schema, at, wholesWithin, "whole");
    if (type === "number") return this.#bounded(schema, at, numbersWithin, "number");
    if (type === "array") return this.#array(schema, at, depth);
    return type === "object" ? this.#object(schema, at, depth) : TYPES[type]!;
  }

  /** Without a type its words bind values of one type; the others would be free. */
  #untyped(schema: Schema, at: string, depth: number): string {
    const has = (...words: readonly string[]) => words.some((word) => schema[word] !== undefined);
    if (has("properties", "required", "additionalProperties")) return this.#object(schema, at, depth);
    if (has("items", "prefixItems", "minItems", "maxItems")) return this.#array(schema, at, depth);
    if (has("minLength", "maxLength", "pattern", "format")) return this.#string(schema, at);
    if (has("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"))
      return this.#bounded(schema, at, numbersWithin, "number");
    return "any";
  }

  #string(schema: Schema, at: string): string {
    const { pattern, format } = schema;
    const least = this.#count(schema, "minLength", at) ?? 0;
    const most = this.#count(schema, "maxLength", at);
    const other = ["minLength", "maxLength", "format"].find(
      (word) => pattern !== undefined && schema[word] !== undefined,
    );
    if (other !== undefined) this.#refuse(`${at}.${other}`, "is not supported beside pattern");
    if (pattern !== undefined) return `"\\"" ${this.#pattern(pattern, `${at}.pattern`)} "\\""`;
    if (format !== undefined) {
      const known = typeof format === "string" && Object.hasOwn(FORMATS, format) ? FORMATS[format] : undefined;
      if (known === undefined) this.#refuse(`${at}.format`, `must be one of ${Object.keys(FORMATS).join(", ")}`);
      if (least > 0 || most !== null)
        this.#refuse(`${at}.${least > 0 ? "minLength" : "maxLength"}`, "is not supported beside format");
      return `"\\"" ${known} "\\""`;
    }
    if (least === 0 && most === null) return "text";
    this.#inOrder(least, most, "minLength", at);
    return `"\\"" character{${least},${most ?? ""}} "\\""`;
  }

  #pattern(pattern: unknown, at: string): string {
    if (typeof pattern !== "string") this.#refuse(at, "must be a regular expression");
    try {
      return patternGrammar(pattern, "character");
    } catch (thrown) {
      this.#refuse(at, `can't be kept: ${thrown instanceof Error ? thrown.message : "not understood"}`);
    }
  }

  #bounded(schema: Schema, at: string, grammar: (bounds: Bounds) => readonly string[], free: string): string {
    const bounds = readBounds(schema, (word) => this.#refuse(`${at}.${word}`, "must be a whole number"));
    if (bounds.low === null && bounds.high === null) return free;
    const ways = grammar(bounds);
    if (ways.length === 0) this.#refuse(at, "must leave a number between its bounds");
    return `(${ways.join(" | ")})`;
  }

  #array(schema: Schema, at: string, depth: number): string {
    const { items, prefixItems } = schema;
    if (prefixItems !== undefined && !Array.isArray(prefixItems))
      this.#refuse(`${at}.prefixItems`, "must be a list of schemas");
    const first = ((prefixItems as readonly unknown[] | undefined) ?? []).map((one, i) =>
      this.#write(one, `${at}.prefixItems[${i}]`, depth + 1),
    );
    const asked = this.#count(schema, "minItems", at) ?? 0;
    const most = this.#count(schema, "maxItems", at);
    this.#inOrder(asked, most, "minItems", at);
    const closed = items === false;
    if (closed && asked > first.length)
      this.#refuse(`${at}.minItems`, `must be at most ${first.length}: items is false`);
    const head = first.slice(0, most ?? first.length);
    if (closed || (most !== null && most <= head.length)) return this.#prefixes(head, asked);
    const item = items === undefined ? "any" : this.#write(items, `${at}.items`, depth + 1);
    const more = Math.max(0, asked - head.length);
    const end = most === null ? "" : String(most - head.length);
    if (head.length > 0) {
      const tail = `(", " ${item}){${more},${end}}`;
      const whole = `"[" ${head.join(' ", " ')} ${tail} "]"`;
      return asked >= head.length ? whole : `(${this.#prefixes(head.slice(0, -1), asked)} | ${whole})`;
    }
    if (asked === 0 && most === null && item === "any") return "list";
    const some = `"[" ${item} (", " ${item}){${Math.max(0, asked - 1)},${most === null ? "" : most - 1}} "]"`;
    if (most === 0) return '"[]"';
    return asked > 0 ? some : `("[]" | ${some})`;
  }

  /** Lists of the first `least` to all of these. */
  #prefixes(head: readonly string[], least: number): string {
    const ways = Array.from({ length: head.length - least + 1 }, (_, i) => head.slice(0, least + i));
    return `(${ways.map((way) => (way.length === 0 ? '"[]"' : `"[" ${way.join(' ", " ')} "]"`)).join(" | ")})`;
  }

  #object(schema: Schema, at: string, depth: number): string {
    const { properties = {}, required = [], additionalProperties = true } = schema;
    if (!isObject(properties)) this.#refuse(`${at}.properties`, "must be an object of schemas");
    if (!Array.isArray(required) || required.some((name) => typeof name !== "string")) {
      this.#refuse(`${at}.required`, "must be a list of names");
    }
    const others = () => this.#write(additionalProperties, `${at}.additionalProperties`, depth + 1);
    const members = Object.entries(properties)
      // What can never be there is left out.
      .filter(([name, one]) => one !== false || required.includes(name))
      .map(([name, one]) => ({ name, value: this.#write(one, `${at}.properties.${name}`, depth + 1) }));
    for (const name of required) {
      if (Object.hasOwn(properties, name)) continue;
      if (additionalProperties === false)
        this.#refuse(`${at}.required`, `must be of properties: ${JSON.stringify(name)} is not`);
      members.push({ name, value: others() });
    }
    if (members.length > 0) return this.#members(members, new Set(required as readonly string[]));
    if (additionalProperties === false) return '"{}"';
    const value = others();
    return value === "any" ? "record" : `("{}" | "{" text ": " ${value} (", " text ": " ${value})* "}")`;
  }

  /**
   * Members in order, each optional one there or not. Two rules a member: the rest of the object where nothing stands
   * before it, and where something does.
   */
  #members(
    members: readonly { readonly name: string; readonly value: string }[],
    required: ReadonlySet<string>,
  ): string {
    const base = `object${this.#rules.size}`;
    const rule = (kind: "first" | "more", i: number) => (i === members.length ? '""' : `${base}_${kind}${i}`);
    for (const [i, { name, value }] of members.entries()) {
      const member = `${literal(`${JSON.stringify(name)}: `)} ${value}`;
      const skip = (kind: "first" | "more") => (required.has(name) ? "" : ` | ${rule(kind, i + 1)}`);
      this.#rules.set(rule("first", i), `${member} ${rule("more", i + 1)}${skip("first")}`);
      this.#rules.set(rule("more", i), `", " ${member} ${rule("more", i + 1)}${skip("more")}`);
    }
    return `"{" ${rule("first", 0)} "}"`;
  }

  #count(schema: Schema, word: string, at: string): number | null {
    const value = schema[word];
    if (value === undefined) return null;
    if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || value > SCHEMA_LIMITS.count) {
      this.#refuse(`${at}.${word}`, `must be a whole number from 0 to ${SCHEMA_LIMITS.count}`);
    }
    return value;
  }

  #inOrder(least: number, most: number | null, word: string, at: string): void {
    if (most !== null && least > most)
      this.#refuse(`${at}.${word}`, `must be at most ${most}, the upper limit beside it`);
  }

  #refuse(at: string, what: string): never {
    const param = `${this.#param}${at}`.slice(0, 300);
    throw new MargayError("invalid_request", `${param} ${what}.`, { param });
  }
}
