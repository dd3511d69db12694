import { type BlockStep, type CallBlock, type CallPiece, calledName } from "./call-block.ts";
import { isObject } from "./json-value.ts";
import type { Tags } from "./tags.ts";

/**
 * A call written as `{"name": ..., "arguments": {...}}`. It is handed out whole when the block closes, since only then is
 * it known to be valid; anything else goes back to the content, tags included.
 */
export class JsonCallBlock implements CallBlock {
  private readonly tags: Tags;
  private readonly unseal: (text: string) => string;
  private text = "";

  constructor(tags: Tags, unseal: (text: string) => string) {
    this.tags = tags;
    this.unseal = unseal;
  }

  push(text: string): BlockStep {
    const { callOpen, callClose } = this.tags;
    const searched = Math.max(0, this.text.length - callClose.length);
    this.text += text;
    const end = this.text.indexOf(callClose, searched);
    if (end < 0) return { pieces: [], content: "", rest: null };
    const body = this.text.slice(0, end);
    const rest = this.text.slice(end + callClose.length);
    const pieces = callIn(this.unseal(body));
    return pieces === null ? { pieces: [], content: callOpen + body + callClose, rest } : { pieces, content: "", rest };
  }

  finish(): BlockStep {
    const pieces = callIn(this.unseal(this.text));
    return pieces === null
      ? { pieces: [], content: this.tags.callOpen + this.text, rest: "" }
      : { pieces, content: "", rest: "" };
  }
}

/** What the language can do and its type declarations do not know yet. */
const exact = JSON as unknown as {
  parse(text: string, revive: (key: string, value: unknown, context: { readonly source?: string }) => unknown): unknown;
  rawJSON(text: string): unknown;
};

function callIn(text: string): readonly CallPiece[] | null {
  const call = parsed(text);
  if (!isObject(call) || typeof call.name !== "string") return null;
  const name = calledName(call.name);
  const written = argumentsIn(call) ?? {};
  const given = typeof written === "string" ? parsed(written) : written;
  if (name === null || !isObject(given)) return null;
  const kept = typeof written === "string" ? keepingNumbers(written) : argumentsIn(keepingNumbers(text));
  return [{ name }, { arguments: JSON.stringify(kept ?? {}) }];
}

function argumentsIn(call: unknown): unknown {
  return isObject(call) ? (call.arguments ?? call.parameters) : undefined;
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Parses so that numbers are written again as they were: an identifier of twenty digits keeps them all. */
function keepingNumbers(json: string): unknown {
  return exact.parse(json, (_, value, { source }) => {
    return typeof value === "number" && source !== undefined ? exact.rawJSON(source) : value;
  });
}
