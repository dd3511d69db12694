import { isObject } from "./json-value.ts";
import { jsonOfPythonLiteral } from "./python-literal.ts";

/** How the text of an argument is read: a string stays as it is, anything else is JSON where it can be. */
export type ArgumentKind =
  | { readonly onlyString: true }
  | { readonly onlyString: false; readonly types: readonly string[] };

/** How `schema` (of one function's parameters) wants argument `key`; with no say, any type. */
export function argumentKind(schema: unknown, key: string): ArgumentKind {
  const properties = isObject(schema) ? schema.properties : undefined;
  const types = typesOf(isObject(properties) && Object.hasOwn(properties, key) ? properties[key] : undefined);
  return types.length > 0 && types.every((type) => type === "string")
    ? { onlyString: true }
    : { onlyString: false, types };
}

function typesOf(schema: unknown): readonly string[] {
  if (!isObject(schema)) return [];
  const { type, anyOf, oneOf } = schema;
  if (typeof type === "string") return [type];
  if (Array.isArray(type)) return type.filter((one) => typeof one === "string");
  const choices = [anyOf, oneOf].find(Array.isArray);
  if (choices !== undefined) {
    const all = choices.map(typesOf);
    return all.some((types) => types.length === 0) ? [] : all.flat();
  }
  const { enum: values } = schema;
  return Array.isArray(values) && values.every((value) => typeof value === "string") ? ["string"] : [];
}

/** JSON of an argument's text that may be more than a string: JSON as it is, else a Python literal, else a string. */
export function argumentJson(text: string, types: readonly string[]): string {
  const trimmed = text.trim();
  const json = isJson(trimmed) ? trimmed : jsonOfPythonLiteral(trimmed);
  return json !== null && fits(json, types) ? json : JSON.stringify(text);
}

/** Only a schema that allows strings beside other types can prefer the string. */
function fits(json: string, types: readonly string[]): boolean {
  if (!types.includes("string")) return true;
  const value: unknown = JSON.parse(json);
  if (value === null) return types.includes("null");
  if (Array.isArray(value)) return types.includes("array");
  if (typeof value === "number")
    return types.includes("number") || (types.includes("integer") && Number.isInteger(value));
  return typeof value !== "string" && types.includes(typeof value);
}

function isJson(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}
