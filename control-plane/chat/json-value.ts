import { MargayError } from "#protocol/errors.ts";

/** Any value of a parsed JSON text. */
export type JsonValue = string | number | boolean | null | readonly JsonValue[] | JsonObject;
export interface JsonObject {
  readonly [key: string]: JsonValue;
}

/** Deepest nesting of client values: they are walked by recursion. */
export const MAX_JSON_DEPTH = 64;

export function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Refuses with `invalid_request` naming `param` what is no JSON value or nested too deeply. */
export function jsonValue(value: unknown, param: string): JsonValue {
  check(value, param, 0);
  return value as JsonValue;
}

function check(value: unknown, param: string, depth: number): void {
  if (value === null || typeof value === "string" || typeof value === "boolean") return;
  if (typeof value === "number" && Number.isFinite(value)) return;
  if (typeof value !== "object")
    throw new MargayError("invalid_request", `${param} must hold JSON values only.`, { param });
  if (depth === MAX_JSON_DEPTH) {
    throw new MargayError("invalid_request", `${param} is nested deeper than ${MAX_JSON_DEPTH} levels.`, { param });
  }
  for (const item of Object.values(value)) check(item, param, depth + 1);
}

/** A copy with every string, object keys included, replaced by `change(string)`. Keys keep their order. */
export function mapStrings(value: JsonValue, change: (text: string) => string): JsonValue {
  if (typeof value === "string") return change(value);
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map((item) => mapStrings(item, change));
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [change(key), mapStrings(item, change)]));
}

/** Calls `see` with every string in `value`, object keys included. */
export function eachString(value: JsonValue, see: (text: string) => void): void {
  if (typeof value === "string") see(value);
  else if (Array.isArray(value)) for (const item of value) eachString(item, see);
  else if (typeof value === "object" && value !== null) {
    for (const [key, item] of Object.entries(value)) {
      see(key);
      eachString(item, see);
    }
  }
}
