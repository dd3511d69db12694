import { z } from "zod";
import { MAX_TOOLS, ReasoningEffort } from "../chat-schema.ts";
import { flag, must, numberWithin, onlyEmpty, onlyNeutral, wholeFrom } from "../must.ts";
import { SamplingFields } from "../sampling-schema.ts";
import { InputField } from "./input-items.ts";

/** Limits of OpenAI's `metadata`. */
const MAX_METADATA = 16;
const MAX_METADATA_KEY = 64;
const MAX_METADATA_VALUE = 512;

const text = z.string(must("be a string"));
const nameRule = must("be 1 to 64 letters, digits, _ or -");
const toolName = z.string(nameRule).regex(/^[A-Za-z0-9_-]{1,64}$/, nameRule);

/** A function the model may call. */
const FunctionTool = z.object(
  {
    type: z.literal("function", { error: 'must be "function": tools of the server are not supported' }),
    name: toolName,
    description: text.nullish(),
    parameters: z.record(z.string(), z.unknown(), must("be a JSON schema object")).nullish(),
    strict: flag().nullish(),
  },
  must('be {"type": "function", "name": ...}'),
);
export type FunctionTool = z.infer<typeof FunctionTool>;

const choiceRule = {
  error:
    'must be "none", "auto", "required", {"type": "function", "name": ...} or {"type": "allowed_tools", "mode": ..., "tools": [...]}',
};
const named = z.object({ type: z.literal("function", choiceRule), name: z.string(choiceRule) }, choiceRule);
export const FunctionChoice = z.union(
  [
    z.literal(["none", "auto", "required"], choiceRule),
    named,
    z.object({
      type: z.literal("allowed_tools", choiceRule),
      mode: z.literal(["auto", "required"], choiceRule),
      tools: z.array(named, choiceRule).min(1, must("hold at least one tool")).max(MAX_TOOLS),
    }),
  ],
  choiceRule,
);
export type FunctionChoice = z.infer<typeof FunctionChoice>;

const TextFormat = z.discriminatedUnion(
  "type",
  [
    z.object({ type: z.literal("text") }),
    z.object({ type: z.literal("json_object") }),
    z.object({
      type: z.literal("json_schema"),
      name: toolName,
      description: text.nullish(),
      schema: z.record(z.string(), z.unknown(), must("be a JSON schema object")),
      strict: flag().nullish(),
    }),
  ],
  {
    error: (issue) =>
      issue.code === "invalid_union"
        ? 'must be one of "text", "json_object", "json_schema"'
        : 'must be an object with a type: "text", "json_object" or "json_schema"',
  },
);

const metadataRule = must(
  `be an object of at most ${MAX_METADATA} strings, with names of at most ${MAX_METADATA_KEY} and values of at most ${MAX_METADATA_VALUE} characters`,
);
/** `metadata` of what is stored. */
export const Metadata = z
  .record(
    z.string().max(MAX_METADATA_KEY, metadataRule),
    z.string(metadataRule).max(MAX_METADATA_VALUE, metadataRule),
    metadataRule,
  )
  .refine((metadata) => Object.keys(metadata).length <= MAX_METADATA, metadataRule);

/** vLLM's fields beyond OpenAI's that this API reads as the others do. */
const Extensions = SamplingFields.pick({
  ...{ top_k: true, min_p: true, seed: true, stop: true, stop_token_ids: true, min_tokens: true, ignore_eos: true },
  ...{ priority: true, repetition_penalty: true, frequency_penalty: true, presence_penalty: true, logit_bias: true },
});

/**
 * `POST /v1/responses`. Fields unknown to the API are ignored, known but unsupported ones refused by name. null means the
 * same as a missing field.
 */
export const ResponsesRequest = Extensions.extend({
  model: SamplingFields.shape.model,
  input: InputField,
  instructions: text.nullish(),
  tools: z
    .array(FunctionTool, must("be a list of tools"))
    .max(MAX_TOOLS, must(`hold at most ${MAX_TOOLS}`))
    .nullish(),
  tool_choice: FunctionChoice.nullish(),
  parallel_tool_calls: flag().nullish(),
  text: z
    .object({ format: TextFormat.nullish(), verbosity: onlyNeutral("medium") }, must("be an object with format"))
    .nullish(),
  reasoning: z
    .object(
      {
        effort: ReasoningEffort,
        summary: onlyNeutral("auto"),
        generate_summary: onlyNeutral(),
      },
      must("be an object with effort"),
    )
    .nullish()
    .meta({ description: "Thoughts are told whole, as reasoning_text; there are no summaries." }),
  max_output_tokens: wholeFrom(1).nullish(),
  temperature: numberWithin(0, 2).nullish().meta({ description: "0 is greedy." }),
  top_p: numberWithin(0, 1).nullish(),
  metadata: Metadata.nullish(),
  stream: flag().nullish(),
  stream_options: z
    .object({ include_obfuscation: flag().nullish() }, must("be an object"))
    .nullish()
    .meta({ description: "Streams are never padded." }),
  user: text.nullish(),
  safety_identifier: text.nullish(),
  prompt_cache_key: text.nullish().meta({ description: "Not needed: what prompts begin with alike is found anyway." }),
  prompt_cache_retention: onlyNeutral("in_memory"),
  service_tier: SamplingFields.shape.service_tier,
  truncation: onlyNeutral("disabled"),
  top_logprobs: onlyNeutral(0),
  include: onlyEmpty(),
  context_management: onlyEmpty(),
  max_tool_calls: onlyNeutral(),
  conversation: onlyNeutral(),
  prompt: onlyNeutral(),
  moderation: onlyNeutral(),
  image: onlyNeutral(),
  access_programs: onlyNeutral(),
  store: flag().nullish().meta({ description: "Keep the response; true unless set." }),
  background: flag()
    .nullish()
    .meta({ description: "Answer at once, and make the response whether or not anybody waits." }),
  previous_response_id: text.nullish().meta({ description: "Goes on with the conversation of a stored response." }),
});
export type ResponsesRequest = z.infer<typeof ResponsesRequest>;
