import { asMargayError } from "#protocol/errors.ts";
import type { RequestId } from "#protocol/ids.ts";
import type { Generation } from "#protocol/request.ts";
import type { AnswerStream } from "../chat/answer-stream.ts";
import type { PromptOptions, Prompt as Rendered } from "../chat/prompt.ts";
import type { ServedModel } from "../chat/served-model.ts";
import type { Settled } from "../flow/request-flow.ts";
import type { ChatRequest } from "./chat-schema.ts";
import type { ThoughtfulSink, Usage } from "./choice.ts";
import type { Exchange } from "./exchange.ts";
import type { GenerationHost } from "./generation-host.ts";
import { choiceSeed, planGeneration } from "./sampling-params.ts";
import { Chorus, kept, summaryMessages, Thinker } from "./thinkers.ts";

/** Thinkers get this share of a request's time; the rest is the summary's. */
const THINKERS_TIME = 0.5;
/** Of the context, what the summary's prompt leaves to its answer unless less was asked for. */
const SUMMARY_ROOM = 0.25;

export interface HeavyThinkingParts {
  readonly host: GenerationHost;
  readonly model: ServedModel;
  readonly body: ChatRequest;
  readonly options: PromptOptions;
  /** The answer as it was asked for, of the first prompt. */
  readonly plan: Generation;
  readonly count: number;
  readonly newStream: () => AnswerStream;
}

interface Done {
  readonly index: number;
  readonly thinker: Thinker;
  readonly settled: Settled;
  readonly finish: Settled["finish"];
}

/**
 * Owns the thinkers of one request and its summary: K answers to the same prompt side by side, then one answer made of them
 * (LongCat-Flash-Thinking-2601, heavy thinking).
 *
 *   thinking -> summing up -> told
 *
 * H1 a thinker that fails, runs into the most it may generate or is not done at half of the request's time is left out as
 *    long as one is left; of those cut off alone, all are taken
 * H2 what binds the answer (a schema, a grammar, a forced call, log-probabilities) binds the summary alone
 * H3 every token counts: the thinkers' as reasoning, the first prompt and the summary's as input, each once
 */
export class HeavyThinking {
  readonly #parts: HeavyThinkingParts;
  #thinkers: readonly Thinker[] = [];
  #done: readonly Done[] = [];
  #summary: { readonly settled: Settled; readonly promptTokens: number } | null = null;

  constructor(parts: HeavyThinkingParts) {
    this.#parts = parts;
  }

  /** How many of the thinkers were listened to. */
  get listenedTo(): number {
    return this.#done.length;
  }

  /** For `Exchange.conduct`. Rejects with the first thinker's failure where all failed, or with the summary's. */
  async serve(exchange: Exchange, sink: ThoughtfulSink): Promise<readonly Settled[]> {
    const { host, count } = this.#parts;
    const beganMs = host.clock.now();
    this.#done = await this.#think(exchange, sink, beganMs + THINKERS_TIME * host.requestMs);
    const rendered = await this.#summaryPrompt();
    exchange.throwIfAborted();
    exchange.addPrompt(rendered.tokens.length);
    exchange.send(sink.think(`Summing up ${this.#done.length} of ${count} answers.\n\n`));
    const generation = this.#summaryPlan(rendered.tokens);
    const deadlineMs = beganMs + host.requestMs;
    const part = { requestId: exchange.requestId, generation, sink, deadlineMs, countsCached: () => true };
    const settled = await exchange.serve(part);
    this.#summary = { settled, promptTokens: rendered.tokens.length };
    return [...this.#done.map((one) => one.settled), settled];
  }

  /** What all of it used, once the summary is there. */
  usage(reasoningOfSummary: number): Usage {
    const { settled, promptTokens } = this.#summary!;
    const thought = this.#thinkers.reduce((sum, { reasoningTokens }) => sum + reasoningTokens, 0);
    const prompt = this.#parts.plan.promptLength + promptTokens;
    const completion = thought + settled.completionTokens;
    return {
      prompt_tokens: prompt,
      completion_tokens: completion,
      total_tokens: prompt + completion,
      prompt_tokens_details: { cached_tokens: this.#done[0]!.settled.cachedTokens + settled.cachedTokens },
      completion_tokens_details: { reasoning_tokens: thought + reasoningOfSummary },
    };
  }

  async #think(exchange: Exchange, sink: ThoughtfulSink, deadlineMs: number): Promise<readonly Done[]> {
    const { plan, count, newStream } = this.#parts;
    const chorus = new Chorus(count, (text) => sink.think(text));
    this.#thinkers = Array.from({ length: count }, (_, index) => new Thinker(index, newStream(), chorus));
    const outcomes = await Promise.allSettled(
      this.#thinkers.map(async (thinker, index): Promise<Done> => {
        const requestId = `${exchange.requestId}-t${index + 1}` as RequestId;
        const sampling = { ...plan.sampling, seed: choiceSeed(plan.sampling.seed, index), topLogprobs: -1 };
        const generation = { ...plan, sampling, constraint: null };
        const countsCached = () => (this.#done[0]?.index ?? 0) === index;
        try {
          const settled = await exchange.serve({ requestId, generation, sink: thinker, deadlineMs, countsCached });
          return { index, thinker, settled, finish: settled.finish };
        } catch (error) {
          exchange.send(thinker.leave());
          throw error;
        }
      }),
    );
    exchange.throwIfAborted();
    const done = kept(outcomes.flatMap((one) => (one.status === "fulfilled" ? [one.value] : [])));
    if (done.length === 0) throw asMargayError((outcomes[0] as PromiseRejectedResult).reason);
    return done;
  }

  /** As many answers as leave room for another one; the longest are left out first. */
  async #summaryPrompt(): Promise<Rendered> {
    const { host, model, body, options } = this.#parts;
    const asked = body.max_completion_tokens ?? body.max_tokens ?? model.contextLength;
    const mostTokens = model.contextLength - Math.min(asked, SUMMARY_ROOM * model.contextLength);
    for (;;) {
      const answers = this.#done.map(({ thinker }) => thinker.answer);
      const last = this.#done.length === 1;
      try {
        const rendered = await host.prompts.chat(model, summaryMessages(body.messages, answers), options);
        if (last || rendered.tokens.length <= mostTokens) return rendered;
      } catch (error) {
        if (last || asMargayError(error).code !== "context_length_exceeded") throw error;
      }
      const longest = answers.reduce((at, answer, i) => (answer.length > answers[at]!.length ? i : at), 0);
      this.#done = this.#done.filter((_, i) => i !== longest);
    }
  }

  #summaryPlan(tokens: Int32Array): Generation {
    const { model, body, plan, count } = this.#parts;
    const { topLogprobs, seed } = plan.sampling;
    const choice = { topLogprobs, seed: choiceSeed(seed, count), constraint: plan.constraint };
    return planGeneration(model, body, { tokens, param: "messages" }, choice);
  }
}
