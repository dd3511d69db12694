import { z } from "zod";

/** Most prompts of one request. */
export const MAX_PROMPTS = 128;
const MAX_ID = 2_147_483_647;

/** One prompt of a completions request and its place in it. */
export interface PromptInput {
  readonly param: string;
  readonly input: string | Int32Array<ArrayBuffer>;
}

type Fault = { readonly path: readonly (string | number)[]; readonly message: string };

const RULE = `must be a string, a list of token ids, or a list of 1 to ${MAX_PROMPTS} of either`;
const ids = { type: "array", items: { type: "integer", minimum: 0 }, minItems: 1 };
const text = { type: "string", minLength: 1 };

/**
 * `prompt` of the completions API. Read by hand: a list may hold a million ids, which a union of schemas would walk once
 * per alternative and answer with a million issues.
 */
export const PromptField = z
  .unknown()
  .transform((value, context): readonly PromptInput[] => {
    const read = readPrompts(value);
    if (!("message" in read)) return read;
    context.addIssue({ code: "custom", path: [...read.path], message: read.message });
    return z.NEVER;
  })
  .meta({
    description: "One prompt or several, as text or as token ids.",
    anyOf: [text, ids, ...[text, ids].map((items) => ({ type: "array", items, minItems: 1, maxItems: MAX_PROMPTS }))],
  });

function readPrompts(value: unknown): readonly PromptInput[] | Fault {
  if (value === undefined) return { path: [], message: `is required and ${RULE}` };
  if (typeof value === "string" || isIds(value)) {
    const one = readOne(value, []);
    return typeof one === "string" || one instanceof Int32Array ? [{ param: "prompt", input: one }] : one;
  }
  if (!Array.isArray(value) || value.length === 0 || value.length > MAX_PROMPTS) return { path: [], message: RULE };
  if (!value.every((item) => typeof item === typeof value[0])) return { path: [], message: RULE };
  const prompts: PromptInput[] = [];
  for (const [index, item] of value.entries()) {
    const one = readOne(item, [index]);
    if (typeof one !== "string" && !(one instanceof Int32Array)) return one;
    prompts.push({ param: `prompt[${index}]`, input: one });
  }
  return prompts;
}

/** A list that begins with a number is one prompt of token ids. */
function isIds(value: unknown): value is unknown[] {
  return Array.isArray(value) && typeof value[0] === "number";
}

function readOne(value: unknown, path: readonly number[]): string | Int32Array<ArrayBuffer> | Fault {
  if (typeof value === "string") return value === "" ? { path, message: "must not be empty" } : value;
  if (!Array.isArray(value)) return { path, message: "must be a string or a list of token ids" };
  if (value.length === 0) return { path, message: "must hold at least one token id" };
  const tokens = new Int32Array(value.length);
  for (let i = 0; i < value.length; i++) {
    const id: unknown = value[i];
    if (typeof id !== "number" || !Number.isInteger(id) || id < 0 || id > MAX_ID) {
      return { path: [...path, i], message: "must be a token id, a whole number of at least 0" };
    }
    tokens[i] = id;
  }
  return tokens;
}
