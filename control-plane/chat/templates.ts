import { join } from "node:path";
import { Template } from "@huggingface/jinja";
import { MargayError } from "#protocol/errors.ts";
import { CheckpointError, readCheckpointJson, readCheckpointText } from "../tokenizer/checkpoint-file.ts";
import { isObject, type JsonObject } from "./json-value.ts";

const FILE = "chat_template.jinja";
const CONFIG = "tokenizer_config.json";
/** What a template says when it refuses is shown to the client up to here. */
const MAX_REFUSAL = 300;

/** A name no template can spell: the library's own `raise_exception` cannot be told from its failures. */
const REFUSE = "raise exception";
const TOKEN_NAMES = ["bos_token", "eos_token", "pad_token", "unk_token"] as const;

/** Variables that requests cannot set. */
export const RESERVED_VARIABLES: ReadonlySet<string> = new Set([
  ...TOKEN_NAMES,
  ...["messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "loop"],
  ...["raise_exception", "range", "namespace", "strftime_now", "true", "false", "none", "True", "False", "None"],
]);

/** Everything a template sees besides the names of special tokens. */
export interface TemplateInput {
  readonly messages: readonly JsonObject[];
  readonly tools: readonly JsonObject[] | null;
  /** Further variables by name; none of `RESERVED_VARIABLES`. */
  readonly variables: JsonObject;
}

/** The two sources of a checkpoint's template; most checkpoints bring one for both. */
interface Sources {
  readonly plain: string;
  readonly withTools: string;
}

/** Thrown by a template's own `raise_exception`. */
class Refusal extends Error {}

/**
 * A checkpoint's chat template. Immutable.
 *
 * Some checkpoints bring two: `tool_use` is taken when there are tools, `default` otherwise.
 */
export class ChatTemplate {
  private readonly plain: Template;
  private readonly withTools: Template;
  private readonly specialTokens: JsonObject;

  /** Throws `CheckpointError` naming `origin` when a source is not valid Jinja. */
  constructor(source: string | Sources, origin: string, specialTokens: JsonObject = {}) {
    const { plain, withTools } = typeof source === "string" ? { plain: source, withTools: source } : source;
    this.plain = parse(plain, origin);
    this.withTools = withTools === plain ? this.plain : parse(withTools, origin);
    this.specialTokens = specialTokens;
  }

  /** The rendered prompt, ending where the model is to answer. Throws `invalid_request` when the template refuses. */
  render(input: TemplateInput): string {
    const template = input.tools === null ? this.plain : this.withTools;
    try {
      return template.render({
        ...this.specialTokens,
        ...input.variables,
        messages: input.messages,
        tools: input.tools,
        add_generation_prompt: true,
        [REFUSE]: (message: unknown) => {
          throw new Refusal(String(message));
        },
      });
    } catch (cause) {
      const why = cause instanceof Refusal ? cause.message.slice(0, MAX_REFUSAL) : "it does not fit these messages";
      throw new MargayError("invalid_request", `The model's chat template refused: ${why}`, {
        param: "messages",
        cause,
      });
    }
  }
}

/** The template of a checkpoint folder: `chat_template.jinja`, else what `tokenizer_config.json` holds, else null. */
export async function loadChatTemplate(folder: string): Promise<ChatTemplate | null> {
  const config = (await readCheckpointJson(folder, CONFIG)) ?? {};
  const specialTokens = specialTokensOf(config);
  const source = await readCheckpointText(folder, FILE);
  if (source !== null) return new ChatTemplate(source, join(folder, FILE), specialTokens);
  const held = config.chat_template ?? null;
  if (held === null) return null;
  const origin = `${join(folder, CONFIG)}: chat_template`;
  return new ChatTemplate(typeof held === "string" ? held : namedSources(held, origin), origin, specialTokens);
}

function specialTokensOf(config: Readonly<Record<string, unknown>>): JsonObject {
  const spelled = TOKEN_NAMES.flatMap((name): [string, string][] => {
    const token = config[name];
    const spelling = isObject(token) ? token.content : token;
    return typeof spelling === "string" ? [[name, spelling]] : [];
  });
  return Object.fromEntries(spelled);
}

function namedSources(held: unknown, origin: string): Sources {
  const named = new Map<unknown, string>();
  for (const entry of Array.isArray(held) ? held : []) {
    if (isObject(entry) && typeof entry.template === "string") named.set(entry.name, entry.template);
  }
  const plain = named.get("default");
  if (plain === undefined) throw new CheckpointError(`${origin} must be a string or hold a template named default.`);
  return { plain, withTools: named.get("tool_use") ?? plain };
}

function parse(source: string, origin: string): Template {
  try {
    const template = new Template(source);
    correct(template.parsed);
    return template;
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : "not understood";
    throw new CheckpointError(`${origin} is not a valid template: ${why}.`, { cause });
  }
}

/**
 * Corrects a parsed template in place. Each `x.items()` becomes `x | items`: in Jinja a method wins over a key of the same
 * name, in the library the key does, and a tool with an argument called `items` could not be rendered. Calls of
 * `raise_exception` go to our own.
 */
function correct(node: unknown): void {
  if (typeof node !== "object" || node === null) return;
  for (const [key, child] of Object.entries(node)) {
    correct(child);
    if (!isObject(child)) continue;
    const operand = subjectOfItemsCall(child);
    const replaced = operand === null ? child : { type: "FilterExpression", operand, filter: identifier("items") };
    (node as Record<string, unknown>)[key] = isIdentifier(replaced, "raise_exception") ? identifier(REFUSE) : replaced;
  }
}

const identifier = (value: string) => ({ type: "Identifier", value });

function isIdentifier(node: Readonly<Record<string, unknown>>, value: string): boolean {
  return node.type === "Identifier" && node.value === value;
}

/** `x` where the node is `x.items()`, else null. */
function subjectOfItemsCall(node: Readonly<Record<string, unknown>>): unknown {
  const { type, callee, args } = node;
  if (type !== "CallExpression" || !isObject(callee) || !Array.isArray(args) || args.length > 0) return null;
  const { property, computed } = callee;
  if (callee.type !== "MemberExpression" || computed === true || !isObject(property)) return null;
  return isIdentifier(property, "items") ? callee.object : null;
}
