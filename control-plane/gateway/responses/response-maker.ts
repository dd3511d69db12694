import type { ResponseEnd, ResponseEntry, ResponseRecord } from "#protocol/response-entry.ts";
import type { AnswerStream } from "../../chat/answer-stream.ts";
import type { ServedModel } from "../../chat/served-model.ts";
import { ReasoningTokens } from "../choice.ts";
import { answerStream, type Reading } from "./plan.ts";
import { ResponseEvents } from "./response-events.ts";
import type { ResponseHead } from "./response-object.ts";

/**
 * Makes a response out of tokens: as they come, or once more out of what was stored.
 *
 *   made -> begun -> push* -> (finished) -> ended
 *
 * The events depend on the calls alone, so whoever makes the same calls tells the same events.
 */
export class ResponseMaker {
  readonly #answer: AnswerStream;
  readonly #reasoning: ReasoningTokens;
  readonly #events: ResponseEvents;
  #state: "made" | "begun" | "ended" = "made";

  /** `tell`: make events; without, only the response is put together. */
  constructor(model: ServedModel, head: ResponseHead, reading: Reading, tell: boolean) {
    this.#answer = answerStream(model, reading);
    this.#reasoning = new ReasoningTokens(model, reading.startsInReasoning);
    this.#events = new ResponseEvents(head, tell);
  }

  /** The maker of a stored response. */
  static of(model: ServedModel, { head, reading }: ResponseRecord, tell: boolean): ResponseMaker {
    return new ResponseMaker(model, JSON.parse(head) as ResponseHead, JSON.parse(reading) as Reading, tell);
  }

  get state(): "made" | "begun" | "ended" {
    return this.#state;
  }

  /** A stop string was found: the answer is over. */
  get stopped(): boolean {
    return this.#answer.stopped;
  }

  /** Tokens of its thought. */
  get reasoningTokens(): number {
    return this.#reasoning.count;
  }

  get response() {
    return this.#events.response;
  }

  /** Events since the last call, and the number of the first of them. */
  take(): { readonly first: number; readonly events: readonly string[] } {
    const events = this.#events.take();
    return { first: this.#events.next - events.length, events };
  }

  begin(): void {
    if (this.#state !== "made") return;
    this.#state = "begun";
    this.#events.begin();
  }

  push(tokens: Int32Array): void {
    this.#reasoning.push(tokens);
    this.#events.push(this.#answer.push(tokens));
  }

  end({ status, endedAt, error, usage }: ResponseEnd): void {
    if (this.#state === "ended") return;
    this.begin();
    this.#state = "ended";
    // What was held back belongs to an answer that came to its end.
    if (status === "completed" || status === "incomplete") this.#events.push(this.#answer.finish());
    const told =
      usage === null
        ? null
        : {
            input_tokens: usage.promptTokens,
            input_tokens_details: { cached_tokens: usage.cachedTokens, cache_write_tokens: 0 },
            output_tokens: usage.completionTokens,
            output_tokens_details: { reasoning_tokens: this.#reasoning.count },
            total_tokens: usage.promptTokens + usage.completionTokens,
          };
    this.#events.end({ status, endedAt, error, usage: told });
  }

  /** What an entry says happened. */
  replay({ tokens, sizes, end }: ResponseEntry): void {
    this.begin();
    let at = 0;
    for (const size of sizes) {
      this.push(tokens.subarray(at, at + size));
      at += size;
    }
    if (end !== null) this.end(end);
  }
}
