import { z } from "zod";
import { MAX_TOP_LOGPROBS } from "#protocol/request.ts";
import { flag, must, onlyEmpty, onlyNeutral, wholeWithin } from "./must.ts";
import { SamplingFields } from "./sampling-schema.ts";

/** Most tools of one request. */
export const MAX_TOOLS = 128;

const textPart = z.object(
  {
    type: z.literal("text", { error: 'must be "text": other content parts are not supported' }),
    text: z.string(must("be a string")),
  },
  must('be a text part {"type": "text", "text": ...}'),
);
const contentRule = must("be a string or a list of text parts");
const content = z.union([z.string(), z.array(textPart)], contentRule);
const name = z.string(must("be a string")).nullish();

const argumentsRule = must("be a JSON object, or a string that holds one");
const toolCall = z.object(
  {
    id: z.string(must("be a string")).nullish(),
    type: z.literal("function", { error: 'must be "function"' }).nullish(),
    function: z.object(
      {
        name: z.string(must("be a string")).min(1, must("not be empty")),
        arguments: z.union([z.string(), z.record(z.string(), z.unknown())], argumentsRule),
      },
      must("be an object with name and arguments"),
    ),
  },
  must("be a tool call"),
);

/** One message of a conversation. Its further rules, and the fields beyond these, are those of chat/messages.ts. */
export const ChatMessage = z.discriminatedUnion(
  "role",
  [
    z.looseObject({ role: z.literal("system"), content, name }),
    z.looseObject({ role: z.literal("developer"), content, name }),
    z.looseObject({ role: z.literal("user"), content, name }),
    z.looseObject({
      role: z.literal("assistant"),
      content: content.nullish(),
      reasoning_content: z.string(must("be a string")).nullish(),
      tool_calls: z.array(toolCall, must("be a list of tool calls")).nullish(),
      refusal: z.string(must("be a string")).nullish(),
      name,
    }),
    z.looseObject({ role: z.literal("tool"), content, tool_call_id: z.string(must("be a string")).nullish(), name }),
  ],
  {
    error: (issue) =>
      issue.code === "invalid_union"
        ? 'must be one of "system", "developer", "user", "assistant", "tool"'
        : "must be a message object with role and content",
  },
);
export type ChatMessage = z.infer<typeof ChatMessage>;

/** A function the model may call. */
export const Tool = z.object(
  {
    type: z.literal("function", { error: 'must be "function"' }),
    function: z.object(
      {
        name: z
          .string(must("be 1 to 64 letters, digits, _ or -"))
          .regex(/^[A-Za-z0-9_-]{1,64}$/, must("be 1 to 64 letters, digits, _ or -")),
        description: z.string(must("be a string")).nullish(),
        parameters: z.record(z.string(), z.unknown(), must("be a JSON schema object")).nullish(),
        strict: flag().nullish(),
      },
      must("be an object with a name"),
    ),
  },
  must('be {"type": "function", "function": ...}'),
);
export type Tool = z.infer<typeof Tool>;

const choiceRule = { error: 'must be "none", "auto", "required" or {"type": "function", "function": {"name": ...}}' };

/** Whether the model may call, must call, or must call one function. */
export const ToolChoice = z.union(
  [
    z.literal(["none", "auto", "required"], choiceRule),
    z.object({
      type: z.literal("function", choiceRule),
      function: z.object({ name: z.string(choiceRule) }, choiceRule),
    }),
  ],
  choiceRule,
);
export type ToolChoice = z.infer<typeof ToolChoice>;

/** Whether a model thinks, by how much effort is asked for. */
export const THINKING = {
  ...{ none: false, minimal: false, low: true, medium: true, high: true, xhigh: true, max: true },
} as const satisfies Record<string, boolean>;
export type ReasoningEffort = keyof typeof THINKING;
export const REASONING_EFFORTS = Object.keys(THINKING) as [ReasoningEffort, ...ReasoningEffort[]];

/** `reasoning_effort`. */
export const ReasoningEffort = z
  .literal(REASONING_EFFORTS, must(`be one of ${REASONING_EFFORTS.map((one) => `"${one}"`).join(", ")}`))
  .nullish()
  .meta({ description: '"none" and "minimal" turn thinking off, the others on.' });

/** `POST /v1/chat/completions`. Fields unknown to the API are ignored, known but unsupported ones refused by name. */
export const ChatRequest = SamplingFields.extend({
  messages: z.array(ChatMessage, must("be a list of messages")).min(1, must("hold at least one message")),
  tools: z.array(Tool, must("be a list of tools")).max(MAX_TOOLS).nullish(),
  tool_choice: ToolChoice.nullish(),
  parallel_tool_calls: flag().nullish(),
  logprobs: flag().nullish(),
  top_logprobs: wholeWithin(0, MAX_TOP_LOGPROBS).nullish(),
  reasoning_effort: ReasoningEffort,
  enable_thinking: flag().nullish(),
  chat_template_kwargs: z.record(z.string(), z.unknown(), must("be an object of template arguments")).nullish(),
  verbosity: onlyNeutral("medium"),
  functions: onlyEmpty(),
  function_call: onlyNeutral("none", "auto"),
  modalities: z.array(z.literal("text", { error: 'must be "text": other modalities are not supported' })).nullish(),
  audio: onlyNeutral(),
  prediction: onlyNeutral(),
  web_search_options: onlyNeutral(),
  continue_final_message: onlyNeutral(false),
  add_generation_prompt: onlyNeutral(true),
  echo: onlyNeutral(false),
});
export type ChatRequest = z.infer<typeof ChatRequest>;
