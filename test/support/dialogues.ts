import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { ModelName } from "#protocol/ids.ts";
import { loadServedModel, type ServedModel } from "../../control-plane/chat/served-model.ts";
import type { ChatTool } from "../../control-plane/chat/tools.ts";

/** Folder of the bundled checkpoint. */
export const NANO = fileURLToPath(new URL("../../models/nano", import.meta.url));

/** A recorded conversation with the rendered prompt and the greedy answer of the bundled model. */
export interface Dialogue {
  readonly messages: readonly Readonly<Record<string, unknown>>[];
  readonly tools: readonly ChatTool[] | null;
  readonly enable_thinking: boolean | null;
  readonly prompt: string;
  readonly greedy: string;
}

/** What a client should get for a recorded answer. */
export interface ExpectedAnswer {
  readonly content: string;
  readonly reasoning: string;
  readonly toolCalls: readonly { readonly name: string; readonly arguments: Readonly<Record<string, unknown>> }[];
}

/** All recorded dialogues. */
export const dialogues: readonly Dialogue[] = JSON.parse(readFileSync(`${NANO}/dialogues.json`, "utf8"));

let nano: Promise<ServedModel> | null = null;

/** The bundled checkpoint, loaded once per test file. */
export function nanoModel(): Promise<ServedModel> {
  nano ??= loadServedModel("nano" as ModelName, NANO);
  return nano;
}

/** The dialogue as the body of an OpenAI chat request: arguments as strings, no `name` in tool messages. */
export function chatBody(dialogue: Dialogue): Record<string, unknown> {
  const messages = dialogue.messages.map((message) => {
    const { name: _, ...rest } = message;
    const calls = rest.tool_calls as { readonly function: { readonly name: string; readonly arguments: object } }[];
    if (calls === undefined) return rest;
    const written = calls.map((call) => {
      return { ...call, function: { ...call.function, arguments: JSON.stringify(call.function.arguments) } };
    });
    return { ...rest, tool_calls: written };
  });
  return {
    model: "nano",
    messages,
    ...(dialogue.tools === null ? {} : { tools: dialogue.tools }),
    ...(dialogue.enable_thinking === null ? {} : { enable_thinking: dialogue.enable_thinking }),
  };
}

/**
 * The recorded answer taken apart with plain regular expressions over the whole text: knows nothing of streaming and
 * shares nothing with the parsers under test.
 */
export function expectedAnswer(dialogue: Dialogue): ExpectedAnswer {
  let text = dialogue.greedy.replace(/<\/longcat_s>$/, "");
  let reasoning = "";
  if (dialogue.prompt.endsWith("<longcat_think>\n")) {
    const [thought, answer] = text.split("</longcat_think>\n") as [string, string | undefined];
    reasoning = thought.replace(/^\n/, "").replace(/\n$/, "");
    text = answer ?? "";
  }
  if (dialogue.tools === null) return { content: text, reasoning, toolCalls: [] };
  const toolCalls = [...text.matchAll(/<longcat_tool_call>(\w+)\n(.*?)<\/longcat_tool_call>\n?/gs)].map((call) => {
    const pairs = call[2]!.matchAll(
      /<longcat_arg_key>(.*?)<\/longcat_arg_key>\n<longcat_arg_value>(.*?)<\/longcat_arg_value>/gs,
    );
    // Every argument of the recorded tools is a string.
    return { name: call[1]!, arguments: Object.fromEntries([...pairs].map((pair) => [pair[1]!, pair[2]!])) };
  });
  return { content: text.replace(/<longcat_tool_call>.*/s, ""), reasoning, toolCalls };
}
