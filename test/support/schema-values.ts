import { JUNK } from "./junk.ts";

/** The parts of a JSON schema that our document uses. */
export interface Schema {
  readonly $ref?: string;
  readonly const?: unknown;
  readonly enum?: readonly unknown[];
  readonly anyOf?: readonly Schema[];
  readonly oneOf?: readonly Schema[];
  readonly allOf?: readonly Schema[];
  readonly type?: string;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: boolean | Schema;
  readonly items?: Schema;
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly minLength?: number;
  readonly minimum?: number;
  readonly maximum?: number;
}

type Random = (below: number) => number;

const WORDS = ["a", "Hi", "get_weather", "resp_000000000000000000000000", "low", "{}", "0", "tool-1", "x y"];
const DEEPEST = 6;

/** Makes values that a schema of the document mostly allows: the same random numbers, the same values. */
export class SchemaValues {
  readonly #schemas: Readonly<Record<string, Schema>>;
  readonly #random: Random;
  /** Values by the name of their field, where most others would only be refused for the field's sake. */
  readonly #usual: Readonly<Record<string, readonly unknown[]>>;

  constructor(
    schemas: Readonly<Record<string, Schema>>,
    random: Random,
    usual: Readonly<Record<string, readonly unknown[]>>,
  ) {
    this.#schemas = schemas;
    this.#random = random;
    this.#usual = usual;
  }

  of(schema: Schema, depth = 0): unknown {
    if (schema.$ref !== undefined) return this.of(this.#schemas[schema.$ref.split("/").at(-1)!]!, depth);
    if (schema.const !== undefined) return schema.const;
    if (schema.enum !== undefined) return this.#one(schema.enum);
    const choices = schema.anyOf ?? schema.oneOf ?? schema.allOf;
    if (choices !== undefined) return this.of(this.#one(choices), depth);
    switch (schema.type) {
      case "object":
        return this.#object(schema, depth);
      case "array":
        return this.#array(schema, depth);
      case "string":
        return this.#one(WORDS).padEnd(schema.minLength ?? 0, "z");
      case "integer":
        return Math.trunc(this.#number(schema));
      case "number":
        return this.#number(schema);
      case "boolean":
        return this.#random(2) === 0;
      case "null":
        return null;
      default:
        return this.#one(JUNK);
    }
  }

  #object({ properties = {}, required = [], additionalProperties }: Schema, depth: number): object {
    const made: Record<string, unknown> = {};
    for (const [name, schema] of Object.entries(properties)) {
      const usual = this.#usual[name];
      if (!required.includes(name) && (depth > DEEPEST || this.#random(8) > 0)) continue;
      made[name] = usual !== undefined && this.#random(12) > 0 ? this.#one(usual) : this.of(schema, depth + 1);
    }
    if (typeof additionalProperties === "object" && this.#random(2) === 0)
      made[this.#one(WORDS)] = this.of(additionalProperties, depth + 1);
    return made;
  }

  #array({ items = {}, minItems = 0, maxItems = 3 }: Schema, depth: number): unknown[] {
    const most = depth > DEEPEST ? minItems : Math.min(maxItems, minItems + 2);
    const length = minItems + this.#random(most - minItems + 1);
    return Array.from({ length }, () => this.of(items, depth + 1));
  }

  #number({ minimum = 0, maximum = 1_000 }: Schema): number {
    const [least, most] = [Math.max(minimum, -1e6), Math.min(maximum, 1e6)];
    return this.#one([least, most, least + (most - least) * (this.#random(1_000) / 1_000)]);
  }

  #one<T>(list: readonly T[]): T {
    return list[this.#random(list.length)]!;
  }
}
