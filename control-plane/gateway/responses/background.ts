import type { Bus } from "#protocol/bus/bus.ts";
import { asMargayError, type ErrorCode, MargayError } from "#protocol/errors.ts";
import type { RequestId } from "#protocol/ids.ts";
import type { ResponseRecord } from "#protocol/response-entry.ts";
import type { Clock, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import type { ServedModel } from "../../chat/served-model.ts";
import type { RequestFlow, RequestUse, Settled } from "../../flow/request-flow.ts";
import { KEY_REVOKED, type Tenancy, type Ticket } from "../../tenancy/tenancy.ts";
import type { GatewayWatch } from "../gateway-watch.ts";
import { endOf, failedEnd } from "./endings.ts";
import { tooLarge } from "./keeping.ts";
import type { ResponseLog } from "./response-log.ts";
import { ResponseMaker } from "./response-maker.ts";
import { ResponseWriter } from "./response-writer.ts";

const LOOK_MS = 2_000;
/** Most responses of one gateway in the background; they wait in the queue of all requests. */
const MOST_RUNS = 1_000;

export interface BackgroundParts {
  readonly bus: Bus;
  readonly log: ResponseLog;
  readonly gateways: GatewayWatch;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly flow: RequestFlow;
  readonly tenancy: Tenancy;
  /** Longest life of a request. */
  readonly requestMs: number;
  readonly models: ReadonlyMap<string, ServedModel>;
  /** Ids of the responses that this process makes now, with a client waiting or without. */
  readonly active: Set<string>;
}

interface Run {
  readonly id: string;
  readonly model: ServedModel;
  readonly record: ResponseRecord;
  readonly maker: ResponseMaker;
  readonly writer: ResponseWriter;
  readonly abort: AbortController;
  readonly requestId: RequestId;
  readonly generated: Int32Array;
  /** Of the limits that the request was let in under; a run that was taken over is under none. */
  readonly ticket: Ticket;
  /** What it used up, once that is known. */
  readonly use: PromiseWithResolvers<RequestUse>;
}

/**
 * Owns the responses that nobody waits for on a connection, and sees that none is left behind.
 *
 *   started | left behind by its gateway -> taken over -> running -> ended | lost to another gateway
 *
 * B1 A response is made by one gateway at a time: the log takes entries from the one that wrote last.
 * B2 A gateway that takes over goes on behind the last token that the log has, so the text is what it would have been.
 * B3 A run that this process has to drop has no end in the log: another gateway goes on with it.
 * B4 With its key a run ends, as a stream does.
 */
export class Background {
  readonly #parts: BackgroundParts;
  readonly #runs = new Set<Run>();
  /** Marked responses without a log: looked at twice before their mark is taken off, for the log may be on its way. */
  #unlogged: ReadonlySet<string> = new Set();
  #looks: Timer | null = null;
  #looking = false;

  constructor(parts: BackgroundParts) {
    this.#parts = parts;
  }

  /** Begins a response once it is kept, and returns it as it is then. `ticket` is ended with it, or where this rejects. */
  async start(id: string, model: ServedModel, record: ResponseRecord, ticket: Ticket) {
    try {
      return await this.#begin(id, model, record, ticket);
    } catch (error) {
      ticket.end();
      ticket.record(null);
      throw error;
    }
  }

  /** Looks for responses left behind from now on. */
  watch(): void {
    this.#looks = this.#parts.clock.every(LOOK_MS, () => void this.#look());
  }

  /** The keys changed: ends what runs for one that holds no more. */
  endRevoked(): void {
    for (const run of this.#runs) this.#checkKey(run);
  }

  /** Drops what runs; others go on with it. */
  close(): void {
    this.#looks?.cancel();
    this.#looks = null;
    for (const { abort } of this.#runs) abort.abort(new MargayError("shutting_down"));
  }

  async #begin(id: string, model: ServedModel, record: ResponseRecord, ticket: Ticket) {
    if (this.#runs.size >= MOST_RUNS) throw new MargayError("queue_full");
    const maker = ResponseMaker.of(model, record, false);
    const abort = new AbortController();
    const writer = new ResponseWriter({
      ...{ log: this.#parts.log, clock: this.#parts.clock, id, record },
      ...{ onWritten: () => {}, onLost: (error) => abort.abort(error) },
    });
    maker.begin();
    const begun = maker.response;
    this.#parts.active.add(id);
    try {
      await writer.begin();
    } catch (error) {
      this.#parts.active.delete(id);
      throw tooLarge(asMargayError(error));
    }
    const { requestId } = record;
    const generated = new Int32Array(0);
    const use = Promise.withResolvers<RequestUse>();
    void this.#run({ id, model, record, maker, writer, abort, requestId, generated, ticket, use });
    return begun;
  }

  async #look(): Promise<void> {
    const { bus, log, logger, gateways, active } = this.#parts;
    if (this.#looking || bus.state !== "connected") return;
    this.#looking = true;
    try {
      const unlogged = new Set<string>();
      for (const id of await log.marked()) {
        if (active.has(id)) continue;
        const last = await log.last(id);
        if (last === null && !this.#unlogged.has(id)) unlogged.add(id);
        else if (last === null || last.value.end !== null) await log.unmark(id);
        else if (gateways.isGone(last.value.writer)) await this.#adopt(id);
      }
      this.#unlogged = unlogged;
    } catch (error) {
      logger.debug({ error }, "responses left behind could not be looked for");
    } finally {
      this.#looking = false;
    }
  }

  async #adopt(id: string): Promise<void> {
    const { log, clock, logger, models, active, tenancy, requestMs } = this.#parts;
    if (this.#runs.size >= MOST_RUNS) return;
    const entries = await log.read(id, 0);
    const record = entries[0]?.value.record ?? null;
    const last = entries.at(-1);
    const model = models.get(record?.model ?? "");
    if (record === null || last === undefined || model === undefined) return;
    const claim = { number: last.value.number + 1, writer: log.gatewayId, record: null, end: null };
    const none = new Int32Array(0);
    const after = await log.append(id, last.seq, { ...claim, tokens: none, sizes: none });
    if (after === null) return;
    active.add(id);
    logger.info({ response: id, owner: last.value.writer }, "a response left behind is taken over");
    const maker = ResponseMaker.of(model, record, false);
    for (const { value } of entries) maker.replay(value);
    const generated = Int32Array.from(entries.flatMap(({ value }) => [...value.tokens]));
    const abort = new AbortController();
    const writer = new ResponseWriter({
      ...{ log, clock, id, record: null, after, number: claim.number },
      ...{ onWritten: () => {}, onLost: (error) => abort.abort(error) },
    });
    // Ranks may still know the request under the id it had.
    const requestId = `${record.requestId}-${after.toString(36)}` as RequestId;
    const { generation, share, deadlineMs } = record;
    const work = { requestId: record.requestId, model: model.name, inputTokens: generation.promptLength };
    const ticket = tenancy.resume(share.tenant, work, deadlineMs - requestMs);
    const use = Promise.withResolvers<RequestUse>();
    void this.#run({ id, model, record, maker, writer, abort, requestId, generated, ticket, use });
  }

  /** Ends by itself, whatever happens. */
  async #run(run: Run): Promise<void> {
    const { clock, metrics, log, active } = this.#parts;
    const { id, model, writer, abort } = run;
    this.#runs.add(run);
    const beganMs = clock.monotonic();
    const hears = log.listen(id, ({ end }) => {
      if (end !== null && writer.state === "open") void this.#checkEnd(run);
    });
    const seconds = () => Math.floor(clock.now() / 1000);
    const labels = { model: model.name };
    let outcome: "ok" | ErrorCode = "ok";
    try {
      this.#checkKey(run);
      abort.signal.throwIfAborted();
      const settled = ended(run) ?? (await this.#serve(run));
      await writer.end(endOf(run.record.generation.promptLength, settled, seconds()), "");
      metrics.count("margay_requests_total", { ...labels, outcome: "ok" });
      metrics.count("margay_generated_tokens_total", labels, settled.completionTokens - run.generated.length);
    } catch (thrown) {
      const error = abort.signal.aborted ? asMargayError(abort.signal.reason) : asMargayError(thrown);
      outcome = error.code;
      metrics.count("margay_requests_total", { ...labels, outcome });
      if (error.code !== "shutting_down") await writer.end(failedEnd(error, seconds()), "");
    } finally {
      hears.unsubscribe();
      run.ticket.end();
      void this.#record(run, outcome);
      this.#runs.delete(run);
      active.delete(id);
      metrics.observe("margay_request_seconds", labels, (clock.monotonic() - beganMs) / 1000);
    }
  }

  /** Where another gateway goes on, that one has the last word. */
  async #record({ ticket, use, maker }: Run, outcome: "ok" | ErrorCode): Promise<void> {
    if (outcome === "shutting_down") return ticket.record(null);
    ticket.record({ outcome, ...(await use.promise), reasoningTokens: maker.reasoningTokens });
  }

  async #serve({ model, record, maker, writer, abort, requestId, generated, ticket, use }: Run): Promise<Settled> {
    const { generation, share, deadlineMs } = record;
    const { flow, metrics } = this.#parts;
    metrics.count("margay_prompt_tokens_total", { model: model.name }, generation.promptLength);
    return await flow.serve(
      {
        ...{ requestId, model: model.name, share, generation, generated, deadlineMs },
        ...{ maxWaitMs: null, signal: abort.signal },
      },
      {
        onProgress() {},
        onUse: use.resolve,
        onTokens(tokens) {
          if (abort.signal.aborted) return "enough";
          ticket.charge(tokens.length);
          maker.push(tokens);
          writer.push(tokens.slice(), "");
          return maker.stopped ? "enough" : "more";
        },
      },
    );
  }

  #checkKey({ record, abort }: Run): void {
    if (!this.#parts.tenancy.holds(record)) abort.abort(new MargayError("invalid_api_key", KEY_REVOKED));
  }

  /** Somebody says that the response is over. */
  async #checkEnd({ id, abort, writer }: Run): Promise<void> {
    const last = await this.#parts.log.last(id).catch(() => null);
    if (last?.value.end?.status === "cancelled" && writer.state === "open") abort.abort(new MargayError("cancelled"));
  }
}

/** How a response ended of which the log has every token and not the end; null: it goes on. */
function ended({ record, maker, model, generated, use }: Run): Settled | null {
  const { maxNewTokens, sampling } = record.generation;
  const last = generated.at(-1) ?? -1;
  const ends = model.eosTokens.includes(last) || sampling.stopTokens.includes(last);
  const stopped = maker.stopped || (ends && generated.length > sampling.minNewTokens);
  if (!stopped && generated.length < maxNewTokens) return null;
  use.resolve({ cachedTokens: 0, outputTokens: generated.length, prefillGpuMs: 0, decodeGpuMs: 0 });
  return {
    ...{ finish: stopped ? "stop" : "length", completionTokens: generated.length, cachedTokens: 0 },
    ...{ prefill: null, decode: null, attempts: 0, drafts: { verified: 0, accepted: 0 } },
    timings: { queueMs: 0, prefillMs: 0, transferMs: 0, decodeMs: 0 },
  };
}
