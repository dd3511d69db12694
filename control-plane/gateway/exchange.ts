import type { ServerResponse } from "node:http";
import type { FastifyReply } from "fastify";
import { asMargayError, type ErrorCode, MargayError } from "#protocol/errors.ts";
import type { ModelName, RequestId } from "#protocol/ids.ts";
import type { Generation, Logprobs } from "#protocol/request.ts";
import type { RoleOutlook } from "#protocol/scaling.ts";
import type { Clock } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import type { Tracing } from "#service/tracing/tracing.ts";
import type { ServedModel } from "../chat/served-model.ts";
import type { Share } from "../flow/fair-queue.ts";
import type { FlowListener, FlowProgress, RequestFlow, RequestUse, Settled } from "../flow/request-flow.ts";
import type { Caller } from "../tenancy/caller.ts";
import { NO_TICKET, type Tenancy, type Ticket } from "../tenancy/tenancy.ts";
import { callerOf, chargedAs, leavesBy, shareOf } from "./auth.ts";
import type { ChoiceSink } from "./choice.ts";
import { maxWaitOf, progressComment } from "./progress.ts";
import { beginSpan, type RequestSpan } from "./request-span.ts";
import { type ReaderLimits, SseStream, type StreamDialect } from "./sse.ts";
import { storyComment, timing, workerHeaders } from "./story.ts";

/** A silent stream is looked at this often; its first comment is due after one look, further ones less often. */
const LOOK_MS = 1000;
const KEEP_ALIVE_MS = 5000;

/** What every exchange needs of the process around it. */
export interface ExchangeHost {
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly logger: Logger;
  readonly flow: RequestFlow;
  readonly tenancy: Tenancy;
  /** What the workers are that a request waits for. */
  readonly outlook: (model: ModelName) => readonly RoleOutlook[];
  readonly readerLimits: ReaderLimits;
  /** Longest life of a request, milliseconds. */
  readonly requestMs: number;
  /** Exchanges that have not ended, for drain. */
  readonly running: Set<Exchange>;
  /** What is traced; none: nothing is. */
  readonly tracing?: Tracing;
  /** True once the server drains: its connections are not to be used again. */
  readonly draining: () => boolean;
}

/** Makes a stream's last events. */
export type Closing = (settled: readonly Settled[]) => string | Promise<string>;

/** One generation of an exchange. */
export interface Part {
  readonly requestId: RequestId;
  readonly generation: Generation;
  readonly sink: ChoiceSink;
  readonly deadlineMs: number;
  /** Whether its cached tokens count: those of a prompt do once. Asked when all is over. */
  readonly countsCached: () => boolean;
}

/**
 * Owns the generation for one HTTP request: one attempt at the flow per choice, the client's presence, the stream.
 *
 *   made -> running -> settled | failed
 *
 * E1 One signal reaches all choices: the client left, a choice failed, the reader is too slow, or the server drains.
 * E2 `run` ends only when the flow has ended every choice, so that nothing outlives its exchange.
 * E3 A streamed failure is an HTTP status while nothing was sent, one error event after that.
 */
export class Exchange {
  readonly requestId: RequestId;
  readonly caller: Caller;
  readonly #share: Share;
  readonly #host: ExchangeHost;
  readonly #model: ServedModel;
  readonly #reply: FastifyReply;
  readonly #response: ServerResponse;
  readonly #abort = new AbortController();
  readonly #stream: SseStream | null;
  readonly #dialect: StreamDialect;
  readonly #startedMs: number;
  readonly #maxWaitMs: number | null;
  readonly #prompts: number;
  readonly #served: { readonly part: Part; readonly used: Promise<RequestUse> }[] = [];
  #inputTokens: number;
  #ticket: Ticket = NO_TICKET;
  readonly #span: RequestSpan | null;
  #progress: FlowProgress | null = null;
  #sawFirstToken = false;

  constructor(
    host: ExchangeHost,
    options: {
      readonly requestId: RequestId;
      readonly model: ServedModel;
      /** Tokens of each prompt of the request. */
      readonly promptLengths: readonly number[];
      readonly reply: FastifyReply;
      readonly streamed: boolean;
      readonly dialect: StreamDialect;
    },
  ) {
    const { reply, model } = options;
    this.requestId = options.requestId;
    this.caller = callerOf(reply.request);
    this.#share = shareOf(reply.request);
    this.#host = host;
    this.#model = model;
    this.#reply = reply;
    this.#response = reply.raw;
    this.#dialect = options.dialect;
    this.#startedMs = host.clock.monotonic();
    this.#maxWaitMs = maxWaitOf(reply.request.headers);
    this.#stream = options.streamed
      ? new SseStream({
          response: reply.raw,
          clock: host.clock,
          limits: host.readerLimits,
          headers: () => this.#takeOver(),
          onSlow: (error) => this.abort(error),
        })
      : null;
    this.#prompts = options.promptLengths.length;
    this.#inputTokens = options.promptLengths.reduce((sum, length) => sum + length, 0);
    this.#span = beginSpan(host, reply.request, options.requestId, model.name);
    host.metrics.count("margay_prompt_tokens_total", { model: model.name }, this.#inputTokens);
  }

  /** True once the client is gone: nobody is left to answer. */
  get deserted(): boolean {
    return this.#response.destroyed || this.#response.closed;
  }

  /** Ends the exchange early; the flow hears it at once. */
  abort(error: MargayError): void {
    this.#abort.abort(error);
  }

  /**
   * Serves all choices and returns how they ended, in order. `closing` hears of the end, and makes a stream's last events.
   * Rejects with a `MargayError` that is still to be answered and counted; resolves to null where both was done here (a
   * stream that had begun) or nobody is left to answer.
   */
  run(
    generations: readonly Generation[],
    sinks: readonly ChoiceSink[],
    closing: Closing,
  ): Promise<readonly Settled[] | null> {
    return this.conduct(generations, () => this.#serveAll(generations, sinks), closing);
  }

  /** As `run`, where `work` says what is served (by `serve`) and when; `asked` is what the client asked for. */
  async conduct(
    asked: readonly Generation[],
    work: () => Promise<readonly Settled[]>,
    closing: Closing,
  ): Promise<readonly Settled[] | null> {
    const { running, clock } = this.#host;
    running.add(this);
    const onClose = () => {
      if (!this.#response.writableFinished) this.abort(new MargayError("cancelled", "The client left."));
    };
    this.#response.once("close", onClose);
    const leaving = leavesBy(this.#reply.request);
    leaving?.addEventListener("abort", onClose);
    if (this.deserted || leaving?.aborted === true) onClose();
    let outcome: "ok" | ErrorCode = "ok";
    const looks = this.#stream === null ? null : clock.every(LOOK_MS, () => this.#look());
    try {
      await this.#begin();
      const settled = await work();
      const last = await closing(settled);
      this.#stream?.end(`${last}: ${storyComment(settled)}\n\n${this.#dialect.end}`);
      this.#count("ok", asked, settled);
      this.#span?.settle(asked, settled, this.#inputTokens);
      return settled;
    } catch (thrown) {
      const error = this.#abort.signal.aborted ? asMargayError(this.#abort.signal.reason) : asMargayError(thrown);
      outcome = error.code;
      this.#span?.fail(error.code);
      const begun = this.#stream?.opened === true;
      if (!begun && !this.deserted) throw error;
      this.#count(error.code, asked, []);
      this.#report(error);
      if (begun) this.#stream?.end(await this.#dialect.failure(error));
      else this.#reply.hijack();
      return null;
    } finally {
      this.#span?.end();
      this.#ticket.end();
      void this.#record(outcome);
      looks?.cancel();
      this.#response.removeListener("close", onClose);
      leaving?.removeEventListener("abort", onClose);
      running.delete(this);
    }
  }

  /** Serves one generation, and tells its sink of the end. Rejects as the flow does, or with what ended the exchange. */
  async serve(part: Part): Promise<Settled> {
    const { requestId, generation, sink, deadlineMs } = part;
    const { signal } = this.#abort;
    const listener = new ChoiceListener(this, sink);
    this.#served.push({ part, used: listener.used });
    const settled = await this.#host.flow.serve(
      {
        ...{ requestId, generation, deadlineMs, signal },
        model: this.#model.name,
        share: this.#share,
        maxWaitMs: this.#maxWaitMs,
        trace: this.#span,
      },
      listener,
    );
    signal.throwIfAborted();
    this.send(sink.finish(settled.finish));
    listener.observe(this.#host, this.#model);
    return settled;
  }

  /** The model is asked about a prompt that came about meanwhile: it counts as input like the client's own. */
  addPrompt(tokens: number): void {
    this.#inputTokens += tokens;
    this.#ticket.charge(0, tokens);
    this.#host.metrics.count("margay_prompt_tokens_total", { model: this.#model.name }, tokens);
  }

  /** What the exchange was ended with; throws nothing while it goes on. */
  throwIfAborted(): void {
    this.#abort.signal.throwIfAborted();
  }

  /** Asks for the right to run. Rejects as `Tenancy.begin` does; the answer tells the limits either way. */
  async #begin(): Promise<void> {
    const requestId = chargedAs(this.#reply.request);
    const work = { requestId, model: this.#model.name, inputTokens: this.#inputTokens };
    this.#ticket = await this.#host.tenancy.begin(this.caller, work, (limits) => void this.#reply.headers(limits));
    this.#reply.headers(this.#ticket.headers);
  }

  /** Once all choices have told what they used up. A prompt counts once however many choices it has. */
  async #record(outcome: "ok" | ErrorCode): Promise<void> {
    const served = this.#served;
    const uses = await Promise.all(served.map(({ used }) => used));
    const sum = (of: (use: RequestUse, index: number) => number) =>
      uses.reduce((total, use, index) => total + of(use, index), 0);
    this.#ticket.record({
      outcome,
      inputTokens: this.#inputTokens,
      cachedTokens: sum(({ cachedTokens }, index) => (served[index]!.part.countsCached() ? cachedTokens : 0)),
      outputTokens: sum(({ outputTokens }) => outputTokens),
      reasoningTokens: served.reduce((total, { part }) => total + (part.sink.reasoningTokens ?? 0), 0),
      prefillGpuMs: sum(({ prefillGpuMs }) => prefillGpuMs),
      decodeGpuMs: sum(({ decodeGpuMs }) => decodeGpuMs),
    });
  }

  async #serveAll(generations: readonly Generation[], sinks: readonly ChoiceSink[]): Promise<readonly Settled[]> {
    const { clock, requestMs } = this.#host;
    const deadlineMs = clock.now() + requestMs;
    const perPrompt = generations.length / this.#prompts;
    const outcomes = await Promise.allSettled(
      generations.map(async (generation, index) => {
        const requestId = (index === 0 ? this.requestId : `${this.requestId}-${index}`) as RequestId;
        const countsCached = () => index % perPrompt === 0;
        try {
          return await this.serve({ requestId, generation, sink: sinks[index]!, deadlineMs, countsCached });
        } catch (error) {
          // The first failure is the answer; the other choices end with it.
          this.abort(asMargayError(error));
          throw error;
        }
      }),
    );
    this.throwIfAborted();
    return outcomes.map((outcome) => (outcome as PromiseFulfilledResult<Settled>).value);
  }

  get clock(): Clock {
    return this.#host.clock;
  }

  get aborted(): boolean {
    return this.#abort.signal.aborted;
  }

  send(events: string): void {
    this.#stream?.send(events);
  }

  charge(tokens: number): void {
    this.#ticket.charge(tokens);
  }

  onProgress(progress: FlowProgress): void {
    this.#progress = progress;
  }

  onFirstToken(nowMs: number): void {
    if (this.#sawFirstToken) return;
    this.#sawFirstToken = true;
    const seconds = (nowMs - this.#startedMs) / 1000;
    this.#span?.firstToken(seconds);
    this.#host.metrics.observe("margay_time_to_first_token_seconds", { model: this.#model.name }, seconds);
  }

  /** Keeps a silent stream alive and tells what the request waits for. */
  #look(): void {
    const stream = this.#stream!;
    stream.checkReader();
    if (stream.idleMs < (stream.opened ? KEEP_ALIVE_MS : LOOK_MS)) return;
    const phase = this.#progress?.phase ?? "waiting";
    const waitedMs = this.clock.monotonic() - this.#startedMs;
    stream.comment(progressComment(phase, waitedMs, this.#host.outlook(this.#model.name)));
  }

  /** The stream is about to send its first byte: takes the response from fastify, with what is known by now. */
  #takeOver(): Record<string, string> {
    const headers = this.#reply.getHeaders() as Record<string, string>;
    if (this.#host.draining()) headers.connection = "close";
    this.#reply.hijack();
    const progress = this.#progress;
    if (progress === null) return headers;
    return {
      ...headers,
      ...workerHeaders(progress.prefill, progress.decode),
      ...(progress.decode === null ? {} : { "server-timing": timing("queue", progress.waitedMs) }),
    };
  }

  #count(outcome: "ok" | ErrorCode, generations: readonly Generation[], settled: readonly Settled[]): void {
    const { metrics, clock, logger } = this.#host;
    const model = { model: this.#model.name };
    const seconds = (clock.monotonic() - this.#startedMs) / 1000;
    metrics.count("margay_requests_total", { ...model, outcome });
    metrics.observe("margay_request_seconds", model, seconds);
    const trace = this.#span === null ? {} : { traceId: this.#span.traceId };
    const fields = { requestId: this.requestId, ...trace, ...model, outcome, choices: generations.length, seconds };
    logger.debug({ ...fields, attempts: settled[0]?.attempts ?? null }, "request ended");
  }

  #report(error: MargayError): void {
    if (error.status < 500) return;
    this.#host.logger.warn({ requestId: this.requestId, model: this.#model.name, error }, "a stream failed");
  }
}

/** Stands between the flow and one choice. Called for every step: no allocation beyond the text itself. */
class ChoiceListener implements FlowListener {
  readonly #exchange: Exchange;
  readonly #sink: ChoiceSink;
  readonly #used = Promise.withResolvers<RequestUse>();
  #tokens = 0;
  #firstMs = 0;
  #lastMs = 0;

  constructor(exchange: Exchange, sink: ChoiceSink) {
    this.#exchange = exchange;
    this.#sink = sink;
  }

  /** What the choice used up, when that is known. */
  get used(): Promise<RequestUse> {
    return this.#used.promise;
  }

  onUse(use: RequestUse): void {
    this.#used.resolve(use);
  }

  onProgress(progress: FlowProgress): void {
    this.#exchange.onProgress(progress);
  }

  onTokens(tokens: Int32Array, logprobs: Logprobs | null): "more" | "enough" {
    const exchange = this.#exchange;
    if (exchange.aborted) return "enough";
    this.#lastMs = exchange.clock.monotonic();
    if (this.#tokens === 0) {
      this.#firstMs = this.#lastMs;
      exchange.onFirstToken(this.#firstMs);
    }
    this.#tokens += tokens.length;
    exchange.charge(tokens.length);
    try {
      exchange.send(this.#sink.push(tokens, logprobs));
    } catch (error) {
      exchange.abort(asMargayError(error));
      return "enough";
    }
    return this.#sink.stopped ? "enough" : "more";
  }

  observe(host: ExchangeHost, model: ServedModel): void {
    const labels = { model: model.name };
    host.metrics.count("margay_generated_tokens_total", labels, this.#tokens);
    if (this.#tokens < 2) return;
    const seconds = (this.#lastMs - this.#firstMs) / 1000 / (this.#tokens - 1);
    host.metrics.observe("margay_time_per_output_token_seconds", labels, seconds);
  }
}
