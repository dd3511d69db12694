import { Ajv2020 } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";

/** Random JSON schemas of the words that structured output knows, and what judges texts by them. */

const ajv = new Ajv2020({ strict: false });
(addFormats as unknown as (one: Ajv2020) => void)(ajv);

/** Null: `text` is JSON that `schema` accepts. */
export function faultOf(schema: object, text: string): string | null {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return `no JSON: ${JSON.stringify(text)}`;
  }
  return ajv.validate(schema, value) ? null : `${ajv.errorsText()}: ${text}`;
}

type Schema = Readonly<Record<string, unknown>>;

const PATTERNS = [
  "^a+$",
  "^(foo|ba[rz])\\d{2}$",
  "^\\w+-\\d?$",
  "b.c",
  '^["\\\\a]{1,3}$',
  "^\\s?x$",
  "[^\\W_]$",
  "^.{1,3}$",
  "^[aéü]+$",
];
const FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email", "hostname"];
const VALUES = ["a", 'é"\\', 1, null, { x: [1, "y"] }, "\u0001"];
const NAMES = ["a", "b", "name", "x y", 'é"q'];

/** Schemas by the numbers that `uniform` ([0, 1)) draws. With `bounded` every text of them is short. */
export class SchemaMaker {
  readonly #uniform: () => number;
  readonly #bounded: boolean;

  constructor(uniform: () => number, bounded: boolean) {
    this.#uniform = uniform;
    this.#bounded = bounded;
  }

  schema(depth = 0): Schema {
    const leaves = [this.#text, this.#whole, this.#number, this.#values, this.#pattern, this.#format, this.#simple];
    const nodes = [this.#array, this.#tuple, this.#object, this.#object, this.#choice, this.#map];
    return this.#pick(depth > 1 ? leaves : [...leaves, ...nodes]).call(this, depth);
  }

  #below(limit: number): number {
    return Math.floor(this.#uniform() * limit);
  }

  #pick<T>(list: readonly T[]): T {
    return list[this.#below(list.length)]!;
  }

  #text(): Schema {
    const least = this.#below(4);
    return this.#pick<Schema>([
      { type: "string", maxLength: this.#below(12) },
      { type: "string", minLength: least, maxLength: least + this.#below(6) },
      { type: ["string", "null"], maxLength: 5 },
    ]);
  }

  #whole(): Schema {
    const low = this.#below(2_000) - 1_000;
    const high = low + this.#below(3_000);
    const open: readonly Schema[] = [
      { type: "integer" },
      { type: "integer", exclusiveMinimum: low },
      { type: "integer", maximum: high },
    ];
    const closed = { type: "integer", minimum: low, exclusiveMaximum: high + 1 };
    return this.#bounded ? closed : this.#pick([closed, ...open]);
  }

  #number(): Schema {
    if (this.#bounded) return this.#simple();
    const low = this.#below(30) - 15;
    const high = low + this.#below(12);
    return this.#pick<Schema>([
      { type: "number" },
      { type: "number", minimum: low, maximum: high },
      { type: "number", exclusiveMinimum: low },
      { type: "number", exclusiveMaximum: high },
      { type: "number", exclusiveMinimum: low, exclusiveMaximum: low + 1 },
    ]);
  }

  #simple(): Schema {
    return { type: this.#pick(["boolean", "null"]) };
  }

  #values(): Schema {
    return { enum: VALUES.slice(0, 1 + this.#below(VALUES.length)) };
  }

  #pattern(): Schema {
    return this.#bounded
      ? { type: "string", pattern: "^(foo|ba[rz])\\d{2}$" }
      : { type: "string", pattern: this.#pick(PATTERNS) };
  }

  #format(): Schema {
    return { type: "string", format: this.#pick(FORMATS) };
  }

  #array(depth: number): Schema {
    const least = this.#below(3);
    return { type: "array", items: this.schema(depth + 1), minItems: least, maxItems: least + this.#below(3) };
  }

  #tuple(depth: number): Schema {
    const [a, b] = [this.schema(depth + 1), this.schema(depth + 1)];
    return this.#pick<Schema>([
      { type: "array", prefixItems: [a, b], items: false },
      { type: "array", prefixItems: [a], items: b, minItems: 1, maxItems: 3 },
      { type: "array", prefixItems: [a, b], minItems: 1, maxItems: 2 },
    ]);
  }

  #object(depth: number): Schema {
    const names = Array.from({ length: 1 + this.#below(3) }, (_, i) => `${this.#pick(NAMES)}${i}`);
    const properties = Object.fromEntries(names.map((name) => [name, this.schema(depth + 1)]));
    const required = names.filter(() => this.#uniform() < 0.6);
    return { type: "object", properties, required, additionalProperties: this.#uniform() < 0.5 };
  }

  #choice(depth: number): Schema {
    return { anyOf: [this.schema(depth + 1), this.schema(depth + 1)] };
  }

  #map(depth: number): Schema {
    return this.#bounded ? this.#object(depth) : { type: "object", additionalProperties: this.schema(depth + 1) };
  }
}
