import { refuse } from "./http-errors.ts";
import type { MessageParam } from "./messages-schema.ts";

/** A message as chat/messages.ts reads it. */
type ChatMessage = Readonly<Record<string, unknown>>;

type UserBlock = Exclude<Extract<MessageParam, { readonly role: "user" }>["content"], string>[number];
type AssistantBlock = Exclude<Extract<MessageParam, { readonly role: "assistant" }>["content"], string>[number];

/**
 * Anthropic's conversation in OpenAI's form. Results of tools become messages of their own, in their place; redacted
 * thoughts are left out. Throws `invalid_request` naming the block.
 */
export function conversationOf(
  system: string | readonly { readonly text: string }[] | null,
  messages: readonly MessageParam[],
): readonly ChatMessage[] {
  const found: ChatMessage[] = [];
  const words = typeof system === "string" ? system : (system ?? []).map(({ text }) => text).join("\n\n");
  if (words !== "") found.push({ role: "system", content: words });
  const calls = new Set<string>();
  for (const [i, { role, content }] of messages.entries()) {
    if (typeof content === "string") found.push({ role, content });
    else if (role === "assistant") found.push(assistantMessage(content as readonly AssistantBlock[], calls));
    else found.push(...userMessages(content as readonly UserBlock[], `messages[${i}].content`, calls));
  }
  if (messages.at(-1)!.role === "assistant") {
    throw refuse("messages", "must not end with the assistant: an answer can't be continued here");
  }
  return found;
}

function assistantMessage(blocks: readonly AssistantBlock[], calls: Set<string>): ChatMessage {
  const texts: string[] = [];
  const thoughts: string[] = [];
  const made: object[] = [];
  for (const block of blocks) {
    if (block.type === "text") texts.push(block.text);
    else if (block.type === "thinking") thoughts.push(block.thinking);
    else if (block.type === "tool_use") {
      const { id, name, input } = block;
      calls.add(id);
      made.push({ id, type: "function", function: { name, arguments: input } });
    }
  }
  return {
    role: "assistant",
    content: texts.join(""),
    ...(thoughts.length === 0 ? {} : { reasoning_content: thoughts.join("\n") }),
    ...(made.length === 0 ? {} : { tool_calls: made }),
  };
}

function userMessages(blocks: readonly UserBlock[], param: string, calls: ReadonlySet<string>): ChatMessage[] {
  const found: ChatMessage[] = [];
  let texts: string[] = [];
  const flush = () => {
    if (texts.length > 0) found.push({ role: "user", content: texts.join("") });
    texts = [];
  };
  for (const [i, block] of blocks.entries()) {
    if (block.type === "text") {
      texts.push(block.text);
      continue;
    }
    flush();
    const { tool_use_id: id, content, is_error: failed } = block;
    if (!calls.has(id)) {
      throw refuse(`${param}[${i}].tool_use_id`, "must be the id of a tool_use block in an earlier assistant message");
    }
    const words = typeof content === "string" ? content : (content ?? []).map(({ text }) => text).join("");
    found.push({ role: "tool", tool_call_id: id, content: failed === true ? `Error: ${words}` : words });
  }
  flush();
  return found;
}
