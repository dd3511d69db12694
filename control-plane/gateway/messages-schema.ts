import { z } from "zod";
import { MAX_MESSAGES, MAX_PARTS } from "../chat/messages.ts";
import { MAX_TOOLS } from "./chat-schema.ts";
import { flag, must, numberWithin, onlyEmpty, wholeFrom } from "./must.ts";
import { MAX_STOP_CHARACTERS } from "./sampling-schema.ts";

/** Most stop sequences of one request. */
export const MAX_STOP_SEQUENCES = 16;

const text = z.string(must("be a string"));
/** Every block may say what to cache: here all of a prompt is. */
const cached = { cache_control: z.looseObject({ type: z.literal("ephemeral") }).nullish() };
const TextBlock = z.object({ type: z.literal("text"), text, ...cached });
const ToolUse = z.object({
  type: z.literal("tool_use"),
  id: text.min(1, must("not be empty")),
  name: text.min(1, must("not be empty")),
  input: z.record(z.string(), z.unknown(), must("be a JSON object")),
  ...cached,
});
const resultRule = must("be a string or a list of text blocks");
const ToolResult = z.object({
  type: z.literal("tool_result"),
  tool_use_id: text.min(1, must("not be empty")),
  content: z.union([z.string(), z.array(TextBlock, resultRule).max(MAX_PARTS)], resultRule).nullish(),
  is_error: flag().nullish(),
  ...cached,
});
const Thinking = z.object({ type: z.literal("thinking"), thinking: text, signature: text.nullish() });
const RedactedThinking = z.object({ type: z.literal("redacted_thinking"), data: text });

const blocksOf = <const B extends readonly [z.ZodObject, ...z.ZodObject[]]>(types: string, blocks: B) =>
  z
    .array(
      z.discriminatedUnion("type", blocks, {
        error: (issue) =>
          issue.code === "invalid_union" ? `must be of ${types}: others are not supported` : "must be a block",
      }),
      must("be a string or a list of blocks"),
    )
    .min(1, must("hold at least one block"))
    .max(MAX_PARTS, must(`hold at most ${MAX_PARTS} blocks`));

const contentRule = must("be a string or a list of blocks");
export const MessageParam = z.discriminatedUnion(
  "role",
  [
    z.object({
      role: z.literal("user"),
      content: z.union([z.string(), blocksOf("text, tool_result", [TextBlock, ToolResult])], contentRule),
    }),
    z.object({
      role: z.literal("assistant"),
      content: z.union(
        [
          z.string(),
          blocksOf("text, tool_use, thinking, redacted_thinking", [TextBlock, ToolUse, Thinking, RedactedThinking]),
        ],
        contentRule,
      ),
    }),
  ],
  {
    error: (issue) =>
      issue.code === "invalid_union" ? 'must be "user" or "assistant"' : "must be a message with role and content",
  },
);
export type MessageParam = z.infer<typeof MessageParam>;

const nameRule = must("be 1 to 64 letters, digits, _ or -");
export const MessageTool = z.object(
  {
    type: z.literal("custom", { error: 'must be "custom": tools of the server are not supported' }).nullish(),
    name: z.string(nameRule).regex(/^[A-Za-z0-9_-]{1,64}$/, nameRule),
    description: text.nullish(),
    input_schema: z.record(z.string(), z.unknown(), must("be a JSON schema object")),
    strict: flag().nullish(),
    ...cached,
  },
  must("be a tool with name and input_schema"),
);
export type MessageTool = z.infer<typeof MessageTool>;

const parallel = { disable_parallel_tool_use: flag().nullish() };
const MessageToolChoice = z.discriminatedUnion(
  "type",
  [
    z.object({ type: z.literal("auto"), ...parallel }),
    z.object({ type: z.literal("any"), ...parallel }),
    z.object({ type: z.literal("tool"), name: text, ...parallel }),
    z.object({ type: z.literal("none") }),
  ],
  { error: () => 'must be an object with a type: "auto", "any", "tool" or "none"' },
);

const stopRule = must(`be a list of at most ${MAX_STOP_SEQUENCES} strings of 1 to ${MAX_STOP_CHARACTERS} characters`);

/** `POST /v1/messages/count_tokens`. */
export const CountTokensRequest = z.object({
  model: z.string(must("be the name of a model (see /v1/models)")).min(1, must("be the name of a model")),
  messages: z
    .array(MessageParam, must("be a list of messages"))
    .min(1, must("hold at least one message"))
    .max(MAX_MESSAGES, must(`hold at most ${MAX_MESSAGES} messages`)),
  system: z.union([z.string(), z.array(TextBlock)], must("be a string or a list of text blocks")).nullish(),
  tools: z
    .array(MessageTool, must("be a list of tools"))
    .max(MAX_TOOLS, must(`hold at most ${MAX_TOOLS} tools`))
    .nullish(),
  tool_choice: MessageToolChoice.nullish(),
  thinking: z
    .discriminatedUnion(
      "type",
      [
        z.object({ type: z.literal("enabled"), budget_tokens: wholeFrom(1).nullish() }),
        z.object({ type: z.literal("adaptive") }),
        z.object({ type: z.literal("disabled") }),
      ],
      { error: () => 'must be an object with a type: "enabled", "adaptive" or "disabled"' },
    )
    .nullish()
    .meta({ description: "budget_tokens is not obeyed: a thought counts towards max_tokens alone." }),
  mcp_servers: onlyEmpty(),
});
export type CountTokensRequest = z.infer<typeof CountTokensRequest>;

/** `POST /v1/messages`, in the form of Anthropic's Messages API. */
export const MessagesRequest = CountTokensRequest.extend({
  max_tokens: wholeFrom(1),
  stop_sequences: z
    .array(z.string(stopRule).min(1, stopRule).max(MAX_STOP_CHARACTERS, stopRule), stopRule)
    .max(MAX_STOP_SEQUENCES, stopRule)
    .nullish(),
  stream: flag().nullish(),
  temperature: numberWithin(0, 1).nullish(),
  top_p: numberWithin(0, 1).nullish(),
  top_k: wholeFrom(0).nullish(),
  output_config: z
    .object(
      {
        format: z
          .object(
            {
              type: z.literal("json_schema", { error: 'must be "json_schema"' }),
              schema: z.record(z.string(), z.unknown(), must("be a JSON schema object")),
            },
            must("be an object with type and schema"),
          )
          .nullish(),
        effort: z.literal(["low", "medium", "high", "xhigh", "max"], { error: "must be an effort" }).nullish(),
      },
      must("be an object"),
    )
    .nullish()
    .meta({ description: "format binds the answer to a schema; effort is not obeyed: thinking is on or off." }),
  metadata: z.looseObject({ user_id: text.nullish() }).nullish(),
  service_tier: z.literal(["auto", "standard_only"], must('be "auto" or "standard_only"')).nullish(),
});
export type MessagesRequest = z.infer<typeof MessagesRequest>;
