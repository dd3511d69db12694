import type { IncomingHttpHeaders } from "node:http";
import type { FinishReason } from "#protocol/request.ts";
import type { AnswerDelta, AnswerStream } from "../chat/answer-stream.ts";
import type { ChoiceSink } from "./choice.ts";
import { refuse } from "./http-errors.ts";

export const THINKERS_HEADER = "x-margay-thinkers";

/** How many thinkers a request asks for; null: it does not. Throws `invalid_request`. */
export function thinkersOf(headers: IncomingHttpHeaders, most: number): number | null {
  const given = headers[THINKERS_HEADER];
  if (given === undefined) return null;
  const count = typeof given === "string" && /^\d{1,4}$/.test(given) ? Number(given) : 0;
  if (count < 1 || count > most) throw refuse(THINKERS_HEADER, `must be a whole number from 1 to ${most}`);
  return count;
}

/** For what has no thinkers. Throws `invalid_request`. */
export function refuseThinkers(headers: IncomingHttpHeaders): void {
  if (headers[THINKERS_HEADER] !== undefined)
    throw refuse(THINKERS_HEADER, "must be left out: only chat completions have thinkers");
}

/**
 * Owns the order in which what thinkers say at once is told: one after the other, each from its beginning. The first one
 * that has not ended is told as it speaks, those behind it are held.
 */
export class Chorus {
  readonly #tell: (text: string) => string;
  readonly #held: string[];
  readonly #ended: boolean[];
  #speaker = 0;

  constructor(count: number, tell: (text: string) => string) {
    this.#tell = tell;
    this.#held = Array(count).fill("");
    this.#ended = Array(count).fill(false);
  }

  /** What is to be sent now. */
  say(index: number, text: string): string {
    if (text === "") return "";
    if (index === this.#speaker) return this.#tell(text);
    this.#held[index] += text;
    return "";
  }

  /** Thinker `index` says nothing more. */
  end(index: number): string {
    this.#ended[index] = true;
    let text = "";
    while (this.#ended[this.#speaker] === true) {
      text += this.#held[++this.#speaker] ?? "";
    }
    return text === "" ? "" : this.#tell(text);
  }
}

/** One thinker: its words are reasoning for the client, and its answer is for the summary. */
export class Thinker implements ChoiceSink {
  readonly #index: number;
  readonly #stream: AnswerStream;
  readonly #chorus: Chorus;
  #calls = "";
  #content = "";
  #part: "silent" | "reasoning" | "content" = "silent";
  /** All of its tokens are part of the reasoning. */
  reasoningTokens = 0;

  constructor(index: number, stream: AnswerStream, chorus: Chorus) {
    this.#index = index;
    this.#stream = stream;
    this.#chorus = chorus;
  }

  get stopped(): boolean {
    return this.#stream.stopped;
  }

  /** What it answered, its reasoning left out; calls of tools as text. */
  get answer(): string {
    return `${this.#content}${this.#calls}`.trim();
  }

  push(tokens: Int32Array): string {
    this.reasoningTokens += tokens.length;
    return this.#tell(this.#stream.push(tokens));
  }

  finish(_finish: FinishReason): string {
    return this.#tell(this.#stream.finish()) + this.leave();
  }

  /** It says nothing more, however it ended. */
  leave(): string {
    return (this.#part === "silent" ? "" : this.#chorus.say(this.#index, "\n\n")) + this.#chorus.end(this.#index);
  }

  #tell({ reasoning, content, toolCalls }: AnswerDelta): string {
    let calls = "";
    for (const call of toolCalls) calls += (call.name === null ? "" : `\n${call.name} `) + call.arguments;
    this.#content += content;
    this.#calls += calls;
    return this.#say("reasoning", reasoning) + this.#say("content", content + calls);
  }

  #say(part: "reasoning" | "content", text: string): string {
    if (text === "") return "";
    const before = this.#part === "silent" ? `Thinker ${this.#index + 1}:\n` : this.#part === part ? "" : "\n\n";
    this.#part = part;
    return this.#chorus.say(this.#index, before + text);
  }
}

type Message = Readonly<Record<string, unknown>> & { readonly role: string };

/**
 * The conversation in which the model is asked to judge the thinkers' answers (LongCat-Flash-Thinking-2601, heavy thinking):
 * what went before, then the last thing that was asked together with the answers.
 */
export function summaryMessages(messages: readonly Message[], answers: readonly string[]): readonly Message[] {
  const last = messages.at(-1)!;
  const asked = last.role === "user";
  const problem = asked ? textOf(last.content) : "What is to be said next in the conversation above.";
  const thoughts = answers.map((answer, index) => `# ----- Thinker #${index + 1} -----\n${answer}`);
  const content = [
    "Here is a problem, and multiple thinkers tried independently to solve it.",
    `====== Problem ======\n${problem}`,
    "==== Thinkers Process Start ====",
    ...thoughts,
    "==== Thinkers Process End ====",
    "Judge the thinkers' answers: where they differ, find out who is right; none may be. Then give the answer to the problem, complete and in your own words, as if nobody had answered before.",
  ].join("\n\n");
  return [...(asked ? messages.slice(0, -1) : messages), { role: "user", content }];
}

function textOf(content: unknown): string {
  if (typeof content === "string") return content;
  return (content as readonly { readonly text: string }[]).map(({ text }) => text).join("");
}

/** Which thinkers count: those that ended by themselves, where there is none those that were cut off. */
export function kept<T extends { readonly finish: FinishReason }>(settled: readonly T[]): readonly T[] {
  const whole = settled.filter(({ finish }) => finish === "stop");
  return whole.length > 0 ? whole : settled;
}
