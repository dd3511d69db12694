import { MargayError } from "#protocol/errors.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { eachString, type JsonObject, type JsonValue, jsonValue, mapStrings } from "./json-value.ts";
import { templateMessages } from "./messages.ts";
import { SPELLED_TAGS } from "./tags.ts";
import { type ChatTemplate, RESERVED_VARIABLES } from "./templates.ts";
import { type ChatTool, templateTools } from "./tools.ts";

/** What a prompt needs of a model. */
export interface PromptModel {
  readonly contextLength: number;
  readonly tokenizer: Tokenizer;
  readonly template: ChatTemplate | null;
}

/** The conversation's surroundings. */
export interface PromptOptions {
  readonly tools: readonly ChatTool[] | null;
  /** Variables for the template: `enable_thinking`, `save_history_reasoning_content` and whatever else it reads. */
  readonly templateKwargs: Readonly<Record<string, unknown>>;
}

/** A rendered conversation. */
export interface Prompt {
  readonly tokens: Int32Array<ArrayBuffer>;
  /** The prompt opened the reasoning: the answer begins inside it. */
  readonly startsInReasoning: boolean;
}

/**
 * Renders a conversation with the checkpoint's template into tokens. Throws `invalid_request` naming the field for bad
 * messages or variables, `context_length_exceeded` when the prompt alone is longer than the context.
 *
 * A client cannot forge a role: special tokens come from the template alone. Those spelled inside anything the client
 * sent (content, reasoning, names, arguments, descriptions, schemas, variables) are broken up by a breaker character
 * before rendering; afterwards the breaker is taken out of the text between true special tokens, which is then encoded as
 * plain text. Where nothing is spelled nothing is broken up, and the tokens are those of the rendered text.
 */
export function renderChat(model: PromptModel, messages: readonly unknown[], options: PromptOptions): Prompt {
  if (model.template === null) {
    throw new MargayError("invalid_request", "This model has no chat template: use completions.", {
      param: "messages",
    });
  }
  const input = {
    messages: templateMessages(messages),
    tools: options.tools === null || options.tools.length === 0 ? null : templateTools(options.tools),
    variables: variables(options.templateKwargs),
  };
  const { markers } = model.tokenizer;
  const breaker = breakerFor(input, (text) => markers.touches(text));
  const safe =
    breaker === null ? input : (mapStrings(input, (text) => markers.breakUp(text, breaker)) as unknown as typeof input);
  const rendered = model.template.render(safe);
  return {
    tokens: encode(model, rendered, breaker),
    startsInReasoning: rendered.trimEnd().endsWith(SPELLED_TAGS.thinkOpen),
  };
}

function variables(kwargs: Readonly<Record<string, unknown>>): JsonObject {
  const checked: Record<string, JsonValue> = {};
  for (const [name, value] of Object.entries(kwargs)) {
    const param = `chat_template_kwargs.${name}`;
    if (!/^[A-Za-z_][A-Za-z0-9_]{0,63}$/.test(name)) {
      throw new MargayError("invalid_request", "chat_template_kwargs must have names made of letters, digits and _.", {
        param: "chat_template_kwargs",
      });
    }
    if (RESERVED_VARIABLES.has(name)) throw new MargayError("invalid_request", `${param} cannot be set.`, { param });
    if (name === "enable_thinking" && value !== null && typeof value !== "boolean") {
      throw new MargayError("invalid_request", "enable_thinking must be true, false or null.", { param });
    }
    if (value !== undefined) checked[name] = jsonValue(value, param);
  }
  return checked;
}

/** Noncharacters: no text means them, and JSON leaves them as they are. */
const BREAKERS = Array.from({ length: 32 }, (_, i) => String.fromCharCode(0xfdd0 + i));

/** A character that occurs nowhere in the client's strings; null when none of these needs breaking up. */
function breakerFor(input: unknown, needsBreaking: (text: string) => boolean): string | null {
  let needed = false;
  const strings: string[] = [];
  eachString(input as JsonValue, (text) => {
    strings.push(text);
    needed ||= needsBreaking(text);
  });
  if (!needed) return null;
  const breaker = BREAKERS.find((one) => strings.every((text) => !text.includes(one) && !text.includes(escaped(one))));
  if (breaker !== undefined) return breaker;
  throw new MargayError("invalid_request", "messages must not hold all of the noncharacters U+FDD0 to U+FDEF.", {
    param: "messages",
  });
}

/** How a template that writes ASCII only spells it. */
function escaped(breaker: string): string {
  return `\\u${breaker.charCodeAt(0).toString(16)}`;
}

function encode(model: PromptModel, rendered: string, breaker: string | null): Int32Array<ArrayBuffer> {
  const { tokenizer, contextLength } = model;
  const repair = (plain: string) =>
    breaker === null ? plain : plain.replaceAll(breaker, "").replaceAll(escaped(breaker), "");
  const tokens = tokenizer.encodeRepaired(rendered, repair, contextLength);
  if (tokens.length <= contextLength) return tokens;
  const rule = `The messages are longer than the model's context of ${contextLength} tokens.`;
  throw new MargayError("context_length_exceeded", rule, { param: "messages" });
}
