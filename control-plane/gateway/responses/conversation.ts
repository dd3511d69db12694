import { MargayError } from "#protocol/errors.ts";
import { refuse } from "../http-errors.ts";
import type { InputItem } from "./input-items.ts";

/** A message as chat/messages.ts reads it. */
type ChatMessage = Readonly<Record<string, unknown>>;

interface AssistantTurn {
  reasoning: string;
  content: string;
  readonly calls: object[];
}

/**
 * Items as messages of a chat. What the assistant thought, said and called in a row is one message, up to where it
 * thinks or speaks again after a call. Throws `invalid_request` naming an item of `input`; `earlier` items come first and
 * were checked when they were new.
 */
export function conversationOf(
  instructions: string | null,
  earlier: readonly InputItem[],
  input: readonly InputItem[],
): readonly ChatMessage[] {
  const messages: ChatMessage[] = instructions === null ? [] : [{ role: "system", content: instructions }];
  const calls = new Set<string>();
  let turn: AssistantTurn | null = null;
  const flush = () => {
    if (turn !== null) messages.push(assistantMessage(turn));
    turn = null;
  };
  const assistant = (follows: boolean): AssistantTurn => {
    if (!follows) flush();
    turn ??= { reasoning: "", content: "", calls: [] };
    return turn;
  };
  for (const [i, item] of [...earlier, ...input].entries()) {
    const open = turn as AssistantTurn | null;
    const speaking = open !== null && open.calls.length === 0;
    if (item.type === "reasoning") {
      assistant(speaking && open.content === "").reasoning += thoughtOf(item);
    } else if (item.type === "function_call") {
      calls.add(item.call_id);
      const { call_id: id, name, arguments: given } = item;
      assistant(true).calls.push({ id, type: "function", function: { name, arguments: given } });
    } else if (item.type === "function_call_output") {
      flush();
      if (!calls.has(item.call_id)) {
        const param = `input[${i - earlier.length}].call_id`;
        throw refuse(param, "must be the call_id of an earlier function_call");
      }
      messages.push({ role: "tool", tool_call_id: item.call_id, content: textOf(item.output) });
    } else if (item.role === "assistant") {
      assistant(speaking).content += textOf(item.content);
    } else {
      flush();
      messages.push({ role: item.role, content: textOf(item.content) });
    }
  }
  flush();
  return messages;
}

function assistantMessage({ reasoning, content, calls }: AssistantTurn): ChatMessage {
  return {
    role: "assistant",
    content,
    ...(reasoning === "" ? {} : { reasoning_content: reasoning }),
    ...(calls.length === 0 ? {} : { tool_calls: calls }),
  };
}

function textOf(content: string | readonly { readonly text: string }[]): string {
  return typeof content === "string" ? content : content.map(({ text }) => text).join("");
}

/** The thought itself where it is told, else its summary. */
function thoughtOf({ content, summary }: Extract<InputItem, { readonly type: "reasoning" }>): string {
  return textOf(content?.length ? content : (summary ?? []));
}

/** Fields of a chat that a refusal may name, and what they are called here; the longest first. */
const NAMES: readonly (readonly [RegExp, string])[] = [
  [/^response_format\.json_schema\.schema/, "text.format.schema"],
  [/^response_format/, "text.format"],
  [/^tools\[(\d+)\]\.function/, "tools[$1]"],
  [/^tool_choice\.function\.name/, "tool_choice.name"],
  [/^messages(\[\d+\][^ ]*)?/, "input"],
  [/^max_(completion_)?tokens/, "max_output_tokens"],
];

/** A refusal of the chat that this request was made into, in the words of this API. */
export function inOwnWords(thrown: unknown): unknown {
  if (!(thrown instanceof MargayError) || thrown.param === null) return thrown;
  const { code, message, param, retryAfterMs, cause } = thrown;
  const rename = NAMES.find(([pattern]) => pattern.test(param));
  if (rename === undefined) return thrown;
  const said = message.startsWith(param) ? message.replace(...rename) : message;
  return new MargayError(code, said, { param: param.replace(...rename), retryAfterMs, cause });
}
