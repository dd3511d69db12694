import { z } from "zod";

/**
 * Zod's error option out of the second half of a sentence whose subject is the field: `must("be a string")`. A field
 * that is missing says so. Together with `requestFault` every refusal names the field and what it allows.
 */
export function must(be: string): { readonly error: (issue: { readonly input?: unknown }) => string } {
  return { error: (issue) => (issue.input === undefined ? `is required and must ${be}` : `must ${be}`) };
}

/** A number within [min, max]. */
export function numberWithin(min: number, max: number) {
  const rule = must(`be a number from ${min} to ${max}`);
  return z.number(rule).min(min, rule).max(max, rule);
}

/** A whole number within [min, max]. */
export function wholeWithin(min: number, max: number) {
  const rule = must(`be a whole number from ${min} to ${max}`);
  return z.int(rule).min(min, rule).max(max, rule);
}

/** A whole number of at least `min`. */
export function wholeFrom(min: number) {
  const rule = must(`be a whole number of at least ${min}`);
  return z.int(rule).min(min, rule);
}

/** A flag. */
export function flag() {
  return z.boolean(must("be true or false"));
}

/** A field of the API that is known and not supported: refused by name unless its value asks for nothing. */
export function onlyNeutral<const V extends string | number | boolean | null>(...neutral: readonly V[]) {
  return z
    .literal([null, ...neutral], { error: "is not supported here: leave it out" })
    .optional()
    .meta({ description: "Not supported; accepted only with a value that asks for nothing." });
}

/** As `onlyNeutral`, for fields whose neutral values are null and the empty list. */
export function onlyEmpty() {
  return z
    .array(z.never(), { error: "is not supported here: leave it out" })
    .max(0, { error: "is not supported here: leave it out" })
    .nullish()
    .meta({ description: "Not supported; accepted only when empty." });
}
