import { isObject } from "../json-value.ts";

/** A terminal of EBNF. */
export function literal(text: string): string {
  const body = [...text].map((sign) => {
    const point = sign.codePointAt(0)!;
    if (sign === '"' || sign === "\\") return `\\${sign}`;
    return point >= 0x20 && point < 0x7f ? sign : `\\U${point.toString(16).padStart(8, "0")}`;
  });
  return `"${body.join("")}"`;
}

/** JSON as the grammars here write it: on one line. */
export function oneLine(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(oneLine).join(", ")}]`;
  if (!isObject(value)) return JSON.stringify(value);
  return `{${Object.entries(value)
    .map(([name, one]) => `${JSON.stringify(name)}: ${oneLine(one)}`)
    .join(", ")}}`;
}

/** Whether a JSON value is of a JSON Schema type. */
export function isOfType(value: unknown, type: string): boolean {
  if (type === "null") return value === null;
  if (type === "array") return Array.isArray(value);
  if (type === "integer") return Number.isInteger(value);
  if (type === "object") return isObject(value);
  return typeof value === type;
}
