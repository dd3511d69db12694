import { isObject } from "../json-value.ts";

/** No value fits two of them: each has one type of its own, or all require a member with another constant. */
export function areDisjoint(schemas: readonly unknown[]): boolean {
  const objects = schemas.filter(isObject);
  if (objects.length < schemas.length) return false;
  const types = objects.map(({ type }) => (type === "integer" ? "number" : type));
  if (types.every((type) => typeof type === "string") && new Set(types).size === types.length) return true;
  const constants = (schema: Readonly<Record<string, unknown>>): ReadonlyMap<string, string> => {
    const required = Array.isArray(schema.required) ? schema.required : [];
    const members = isObject(schema.properties) ? Object.entries(schema.properties) : [];
    return new Map(
      members.flatMap(([name, one]) => {
        if (!isObject(one) || !required.includes(name) || schema.type !== "object") return [];
        const value = one.const ?? (Array.isArray(one.enum) && one.enum.length === 1 ? one.enum[0] : undefined);
        return value === undefined ? [] : [[name, JSON.stringify(value)] as const];
      }),
    );
  };
  const all = objects.map(constants);
  return [...(all[0]?.keys() ?? [])].some((name) => {
    const values = all.map((one) => one.get(name));
    return !values.includes(undefined) && new Set(values).size === values.length;
  });
}
