import { decode } from "#protocol/bus/wire.ts";
import { subjectKind } from "#protocol/subjects.ts";

/** A message in a few words: what it is, whose, and the numbers in it. No tokens. */
export function describeMessage(subject: string, data: Uint8Array): string {
  if (data.byteLength === 0) return `${kindOf(subject)}: nobody is there`;
  const message = decode(data) as Readonly<Record<string, unknown>>;
  return `${kindOf(subject)} ${words(message)}`;
}

function kindOf(subject: string): string {
  return subject.startsWith("_INBOX.") ? "reply" : subjectKind(subject);
}

const SHOWN = ["code", "detail", "epoch", "seq", "firstToken", "finish", "error", "known", "state", "cachedTokens"];

function words(message: Readonly<Record<string, unknown>>): string {
  const parts: string[] = [];
  if (typeof message.kind === "string") parts.push(message.kind);
  const head = (message.head ?? message) as Readonly<Record<string, unknown>>;
  if (head.requestId !== undefined) parts.push(`${String(head.requestId)}#${String(head.attempt)}`);
  for (const field of SHOWN) if (message[field] !== undefined) parts.push(`${field}=${String(message[field])}`);
  if (message.tokens instanceof Int32Array) parts.push(`tokens=${message.tokens.length}`);
  for (const inner of ["generation", "reservation", "chunk", "done", "handle"]) {
    const value = message[inner];
    if (value !== null && typeof value === "object") parts.push(`${inner}(${words(value as typeof message)})`);
  }
  if (typeof message.slot === "number") parts.push(`slot ${message.slot}.${String(message.generation)}`);
  const list = message.chunks ?? message.acks;
  if (Array.isArray(list)) parts.push(`[${list.map((one) => words(one as typeof message)).join("; ")}]`);
  return parts.join(" ");
}
