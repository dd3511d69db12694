import { z } from "zod";
import { MAX_GRAMMAR_CHARACTERS } from "#protocol/constraint.ts";
import { must } from "./must.ts";

/** Most alternatives of a choice, and characters of one. */
const MAX_CHOICES = 1_000;

const schema = z.union([z.record(z.string(), z.unknown()), z.boolean()], must("be a JSON schema"));
const grammarRule = must(`be a string of 1 to ${MAX_GRAMMAR_CHARACTERS} characters`);
const grammar = z.string(grammarRule).min(1, grammarRule).max(MAX_GRAMMAR_CHARACTERS, grammarRule);
const choiceRule = must(`be a list of 1 to ${MAX_CHOICES} strings, none empty`);
const choice = z
  .array(z.string(choiceRule).min(1, choiceRule), choiceRule)
  .min(1, choiceRule)
  .max(MAX_CHOICES, choiceRule);
const nameRule = must("be 1 to 64 letters, digits, _ or -");

const ResponseFormat = z.discriminatedUnion(
  "type",
  [
    z.object({ type: z.literal("text") }),
    z.object({ type: z.literal("json_object") }),
    z.object({
      type: z.literal("json_schema"),
      json_schema: z.object(
        {
          name: z.string(nameRule).regex(/^[A-Za-z0-9_-]{1,64}$/, nameRule),
          description: z.string(must("be a string")).nullish(),
          schema: schema.nullish(),
          strict: z.boolean(must("be true or false")).nullish(),
        },
        must("be an object with name and schema"),
      ),
    }),
  ],
  {
    error: (issue) =>
      issue.code === "invalid_union"
        ? 'must be one of "text", "json_object", "json_schema"'
        : 'must be an object with a type: "text", "json_object" or "json_schema"',
  },
);

/** What an answer must look like: OpenAI's field, then vLLM's. At most one of them may ask for something. */
export const StructuredFields = z.object({
  response_format: ResponseFormat.nullish(),
  structured_outputs: z
    .strictObject(
      {
        json: z.union([schema, z.string(must("be a JSON schema"))], must("be a JSON schema")).nullish(),
        json_object: z.boolean(must("be true or false")).nullish(),
        regex: grammar.nullish(),
        choice: choice.nullish(),
        grammar: grammar.nullish().meta({ description: "EBNF; the text is what the rule root derives." }),
      },
      {
        error: (issue) =>
          issue.code === "unrecognized_keys" ? `must not have ${issue.keys.join(", ")}` : "must be an object",
      },
    )
    .nullish(),
  guided_json: z.union([schema, z.string(must("be a JSON schema"))], must("be a JSON schema")).nullish(),
  guided_regex: grammar.nullish(),
  guided_choice: choice.nullish(),
  guided_grammar: grammar.nullish(),
});
export type StructuredFields = z.infer<typeof StructuredFields>;
