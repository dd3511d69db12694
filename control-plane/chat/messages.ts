import { MargayError } from "#protocol/errors.ts";
import { isObject, type JsonObject, jsonValue } from "./json-value.ts";

/** Most messages of one conversation. */
export const MAX_MESSAGES = 4096;
/** Most content parts, and most tool calls, of one message. */
export const MAX_PARTS = 1024;

const ROLES = ["system", "developer", "user", "assistant", "tool"] as const;
type Role = (typeof ROLES)[number];

/** A message as chat templates read it: content is one string, arguments are objects, tool messages name their tool. */
export interface TemplateMessage extends JsonObject {
  readonly role: Role;
  readonly content: string;
}

function refuse(param: string, rule: string): never {
  throw new MargayError("invalid_request", `${param} ${rule}.`, { param });
}

/**
 * Brings OpenAI chat messages into the form that templates expect. Text parts are joined without a separator, strings of
 * arguments parsed, the name of a tool message looked up by its `tool_call_id`, `reasoning` read as `reasoning_content`;
 * fields that no template reads are dropped. Throws `invalid_request` with a param such as
 * `messages[2].content[1].type`.
 */
export function templateMessages(messages: readonly unknown[]): readonly TemplateMessage[] {
  if (messages.length === 0) refuse("messages", "must hold at least one message");
  if (messages.length > MAX_MESSAGES) refuse("messages", `must hold at most ${MAX_MESSAGES} messages`);
  const toolNames = new Map<string, string>();
  return messages.map((message, i) => templateMessage(message, `messages[${i}]`, toolNames));
}

function templateMessage(message: unknown, param: string, toolNames: Map<string, string>): TemplateMessage {
  if (!isObject(message)) refuse(param, "must be an object with role and content");
  const role = roleOf(message.role, `${param}.role`);
  if (role === "assistant") return assistantMessage(message, param, toolNames);
  const content = textOf(message.content, `${param}.content`);
  if (content === null) refuse(`${param}.content`, "is required and must be a string or a list of text parts");
  if (role === "tool") return toolMessage(message, content, param, toolNames);
  const name = stringOf(message.name, `${param}.name`);
  return { role, content, ...(name === null ? {} : { name }) };
}

function assistantMessage(
  message: Readonly<Record<string, unknown>>,
  param: string,
  toolNames: Map<string, string>,
): TemplateMessage {
  if ((message.function_call ?? null) !== null) {
    refuse(`${param}.function_call`, "is not supported: use tool_calls");
  }
  const content = textOf(message.content, `${param}.content`);
  const reasoning =
    stringOf(message.reasoning_content, `${param}.reasoning_content`) ??
    stringOf(message.reasoning, `${param}.reasoning`);
  const calls = toolCalls(message.tool_calls, `${param}.tool_calls`, toolNames);
  if (content === null && reasoning === null && calls.length === 0) {
    refuse(`${param}.content`, "is required where an assistant message has no tool_calls");
  }
  const name = stringOf(message.name, `${param}.name`);
  return {
    role: "assistant",
    content: content ?? "",
    ...(reasoning === null ? {} : { reasoning_content: reasoning }),
    ...(calls.length === 0 ? {} : { tool_calls: calls }),
    ...(name === null ? {} : { name }),
  };
}

function toolMessage(
  message: Readonly<Record<string, unknown>>,
  content: string,
  param: string,
  toolNames: ReadonlyMap<string, string>,
): TemplateMessage {
  const id = stringOf(message.tool_call_id, `${param}.tool_call_id`);
  const given = stringOf(message.name, `${param}.name`);
  if (id === null && given === null) refuse(`${param}.tool_call_id`, "is required in a tool message");
  const name = id === null ? given : (toolNames.get(id) ?? null);
  if (name === null) refuse(`${param}.tool_call_id`, "must be the id of a tool call in an earlier assistant message");
  return { role: "tool", content, name, ...(id === null ? {} : { tool_call_id: id }) };
}

function roleOf(role: unknown, param: string): Role {
  if (role === "function") refuse(param, 'must not be "function": send tool results with role "tool"');
  const known = ROLES.find((one) => one === role);
  return known ?? refuse(param, `must be one of ${ROLES.map((one) => `"${one}"`).join(", ")}`);
}

function textOf(content: unknown, param: string): string | null {
  if (content === null || content === undefined) return null;
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) refuse(param, "must be a string or a list of text parts");
  if (content.length === 0) refuse(param, "must hold at least one text part");
  if (content.length > MAX_PARTS) refuse(param, `must hold at most ${MAX_PARTS} parts`);
  return content.map((part: unknown, i) => partText(part, `${param}[${i}]`)).join("");
}

function partText(part: unknown, param: string): string {
  if (!isObject(part)) refuse(param, "must be a text part");
  if (part.type !== "text") refuse(`${param}.type`, 'must be "text": other content parts are not supported');
  return stringOf(part.text, `${param}.text`) ?? refuse(`${param}.text`, "is required and must be a string");
}

function toolCalls(calls: unknown, param: string, toolNames: Map<string, string>): readonly JsonObject[] {
  if (calls === null || calls === undefined) return [];
  if (!Array.isArray(calls)) refuse(param, "must be a list of tool calls");
  if (calls.length > MAX_PARTS) refuse(param, `must hold at most ${MAX_PARTS} tool calls`);
  return calls.map((call: unknown, i) => {
    const at = `${param}[${i}]`;
    if (!isObject(call)) refuse(at, "must be an object");
    if ((call.type ?? "function") !== "function") refuse(`${at}.type`, 'must be "function"');
    const called = call.function;
    if (!isObject(called)) refuse(`${at}.function`, "must be an object with name and arguments");
    const name = stringOf(called.name, `${at}.function.name`);
    if (name === null || name === "") refuse(`${at}.function.name`, "is required and must not be empty");
    const id = stringOf(call.id, `${at}.id`);
    if (id !== null) toolNames.set(id, name);
    const given = argumentsOf(called.arguments, `${at}.function.arguments`);
    return { ...(id === null ? {} : { id }), type: "function", function: { name, arguments: given } };
  });
}

function argumentsOf(given: unknown, param: string): JsonObject {
  let value = given ?? {};
  if (typeof value === "string") {
    try {
      value = value.trim() === "" ? {} : JSON.parse(value);
    } catch (cause) {
      throw new MargayError("invalid_request", `${param} must be valid JSON.`, { param, cause });
    }
  }
  if (!isObject(value)) refuse(param, "must be a JSON object, or a string that holds one");
  return jsonValue(value, param) as JsonObject;
}

function stringOf(value: unknown, param: string): string | null {
  if (value === null || value === undefined) return null;
  return typeof value === "string" ? value : refuse(param, "must be a string");
}
