import { z } from "zod";
import { ReasoningEffort } from "../chat-schema.ts";
import { FunctionChoice } from "./request-schema.ts";

/** What the Responses API answers. Made by hand like the others; these schemas document it, and tests parse with them. */

const itemStatus = z.enum(["in_progress", "completed", "incomplete"]);
const reasoningText = z.strictObject({ type: z.literal("reasoning_text"), text: z.string() });
const outputText = z.strictObject({
  type: z.literal("output_text"),
  text: z.string(),
  annotations: z.array(z.never()),
  logprobs: z.array(z.never()),
});

const OutputItem = z.discriminatedUnion("type", [
  z.strictObject({
    type: z.literal("reasoning"),
    id: z.string().startsWith("rs_"),
    summary: z.array(z.never()),
    content: z.array(reasoningText),
    status: itemStatus,
  }),
  z.strictObject({
    type: z.literal("message"),
    id: z.string().startsWith("msg_"),
    role: z.literal("assistant"),
    content: z.array(outputText),
    status: itemStatus,
  }),
  z.strictObject({
    type: z.literal("function_call"),
    id: z.string().startsWith("fc_"),
    call_id: z.string().startsWith("call_"),
    name: z.string().min(1),
    arguments: z.string(),
    status: itemStatus,
  }),
]);

export const ResponseResponse = z.strictObject({
  id: z.string().startsWith("resp_"),
  object: z.literal("response"),
  created_at: z.int(),
  status: z.enum(["queued", "in_progress", "completed", "failed", "incomplete", "cancelled"]),
  completed_at: z.int().optional(),
  error: z.strictObject({ code: z.enum(["server_error", "rate_limit_exceeded"]), message: z.string() }).nullable(),
  incomplete_details: z.strictObject({ reason: z.literal("max_output_tokens") }).nullable(),
  background: z.boolean(),
  instructions: z.string().nullable(),
  max_output_tokens: z.int().nullable(),
  max_tool_calls: z.null(),
  metadata: z.record(z.string(), z.string()),
  model: z.string(),
  parallel_tool_calls: z.boolean(),
  previous_response_id: z.string().nullable(),
  prompt_cache_key: z.string().nullable(),
  reasoning: z.strictObject({ effort: ReasoningEffort.unwrap().unwrap().nullable(), summary: z.null() }),
  safety_identifier: z.string().nullable(),
  service_tier: z.literal(["auto", "default", "priority", "flex"]),
  store: z.boolean(),
  temperature: z.number(),
  text: z.strictObject({
    format: z.discriminatedUnion("type", [
      z.strictObject({ type: z.literal("text") }),
      z.strictObject({ type: z.literal("json_object") }),
      z.strictObject({
        type: z.literal("json_schema"),
        name: z.string(),
        description: z.string().optional(),
        schema: z.record(z.string(), z.unknown()),
        strict: z.boolean().nullish(),
      }),
    ]),
  }),
  tool_choice: FunctionChoice,
  tools: z.array(
    z.strictObject({
      type: z.literal("function"),
      name: z.string(),
      description: z.string().optional(),
      parameters: z.record(z.string(), z.unknown()).nullable(),
      strict: z.boolean().nullable(),
    }),
  ),
  top_logprobs: z.literal(0),
  top_p: z.number(),
  truncation: z.literal("disabled"),
  access_programs: z.null(),
  user: z.string().optional(),
  output: z.array(OutputItem),
  usage: z
    .strictObject({
      input_tokens: z.int(),
      input_tokens_details: z.strictObject({ cached_tokens: z.int(), cache_write_tokens: z.int() }),
      output_tokens: z.int(),
      output_tokens_details: z.strictObject({ reasoning_tokens: z.int() }),
      total_tokens: z.int(),
    })
    .optional(),
});

export const DeletedResponse = z.strictObject({
  id: z.string(),
  object: z.literal("response"),
  deleted: z.literal(true),
});

export const InputItemList = z.strictObject({
  object: z.literal("list"),
  data: z.array(z.looseObject({ type: z.string(), id: z.string(), status: itemStatus })),
  first_id: z.string().nullable(),
  last_id: z.string().nullable(),
  has_more: z.boolean(),
});

const numbered = { sequence_number: z.int().min(0) };
const inOutput = { ...numbered, output_index: z.int().min(0) };
const ofItem = { ...inOutput, item_id: z.string().min(1) };
const ofPart = { ...ofItem, content_index: z.literal(0) };
const noLogprobs = z.array(z.never());
const part = z.discriminatedUnion("type", [reasoningText, outputText]);

const life = <const N extends string>(name: N) =>
  z.strictObject({ type: z.literal(name), ...numbered, response: ResponseResponse });
const event = <const N extends string, const F extends z.core.$ZodLooseShape>(name: N, fields: F) =>
  z.strictObject({ type: z.literal(name), ...fields });

/** One event of a streamed response. */
export const ResponseStreamEvent = z.discriminatedUnion("type", [
  life("response.created"),
  life("response.queued"),
  life("response.in_progress"),
  life("response.completed"),
  life("response.incomplete"),
  life("response.failed"),
  event("response.output_item.added", { ...inOutput, item: OutputItem }),
  event("response.output_item.done", { ...inOutput, item: OutputItem }),
  event("response.content_part.added", { ...ofPart, part }),
  event("response.content_part.done", { ...ofPart, part }),
  event("response.output_text.delta", { ...ofPart, delta: z.string().min(1), logprobs: noLogprobs }),
  event("response.output_text.done", { ...ofPart, text: z.string(), logprobs: noLogprobs }),
  event("response.reasoning_text.delta", { ...ofPart, delta: z.string().min(1) }),
  event("response.reasoning_text.done", { ...ofPart, text: z.string() }),
  event("response.function_call_arguments.delta", { ...ofItem, delta: z.string().min(1) }),
  event("response.function_call_arguments.done", { ...ofItem, name: z.string(), arguments: z.string() }),
]);
