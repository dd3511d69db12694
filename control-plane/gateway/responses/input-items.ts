import { z } from "zod";
import { MAX_MESSAGES, MAX_PARTS } from "../../chat/messages.ts";
import { must } from "../must.ts";

const text = z.string(must("be a string"));
const id = text.min(1, must("not be empty"));
const status = z
  .literal(["in_progress", "completed", "incomplete"], {
    error: 'must be "in_progress", "completed" or "incomplete"',
  })
  .nullish();

const partRule = must('be a part {"type": "input_text", "text": ...}: images, files and audio are not supported');
/** `output_text` comes back from earlier answers, with fields that say nothing to the model. */
const TextPart = z.object({ type: z.literal(["input_text", "output_text", "text"], partRule), text }, partRule);
const contentRule = must("be a string or a list of text parts");
const parts = z
  .array(TextPart, contentRule)
  .min(1, must("hold at least one part"))
  .max(MAX_PARTS, must(`hold at most ${MAX_PARTS} parts`));
const content = z.union([z.string(), parts], contentRule);

const Message = z.object({
  type: z.literal("message"),
  role: z.literal(["user", "assistant", "system", "developer"], {
    error: 'must be one of "user", "assistant", "system", "developer"',
  }),
  content,
  id: id.nullish(),
  status,
});

const argumentsRule = must("be a string that holds a JSON object");
const FunctionCall = z.object({
  type: z.literal("function_call"),
  call_id: id,
  name: id,
  arguments: z.string(argumentsRule).refine(holdsObject, argumentsRule),
  id: id.nullish(),
  status,
});

const FunctionCallOutput = z.object({
  type: z.literal("function_call_output"),
  call_id: id,
  output: content,
  id: id.nullish(),
  status,
});

const Reasoning = z.object({
  type: z.literal("reasoning"),
  id: id.nullish(),
  summary: z.array(z.object({ type: z.literal("summary_text"), text })).nullish(),
  content: z.array(z.object({ type: z.literal("reasoning_text"), text })).nullish(),
  encrypted_content: z.null({ error: "is not supported here: leave it out" }).nullish(),
  status,
});

/** One item of a conversation. */
export const InputItem = z.discriminatedUnion("type", [Message, FunctionCall, FunctionCallOutput, Reasoning], {
  error: (issue) =>
    issue.code === "invalid_union"
      ? 'must be one of "message", "function_call", "function_call_output", "reasoning": others are not supported'
      : "must be an item of a conversation",
});
export type InputItem = z.infer<typeof InputItem>;

const listRule = must("be a string or a list of items");

/** `input`: a text is one message of the user, and an item without a type is a message. */
export const InputField = z
  .unknown()
  .transform((value) => {
    if (typeof value === "string") return [{ type: "message", role: "user", content: value }];
    return Array.isArray(value) ? value.map(withType) : value;
  })
  .pipe(
    z
      .array(InputItem, listRule)
      .min(1, must("hold at least one item"))
      .max(MAX_MESSAGES, must(`hold at most ${MAX_MESSAGES} items`)),
  )
  .meta({
    description: "A text of the user, or items; one without a type is a message.",
    anyOf: [
      { type: "string" },
      { type: "array", items: z.toJSONSchema(InputItem, { io: "input" }), minItems: 1, maxItems: MAX_MESSAGES },
    ],
  });

function withType(item: unknown): unknown {
  const untyped = typeof item === "object" && item !== null && !Array.isArray(item) && !("type" in item);
  return untyped ? { type: "message", ...item } : item;
}

function holdsObject(value: string): boolean {
  try {
    const parsed: unknown = JSON.parse(value);
    return typeof parsed === "object" && parsed !== null && !Array.isArray(parsed);
  } catch {
    return false;
  }
}
