import { type Engine, type EngineEvent, FINISH, finishReason, refusalCode, type StepResult, sameHandle } from "#native";
import type { DecodeDone, ReserveKv, ReserveReply, StartDecode, StartReply } from "#protocol/decode.ts";
import type { ErrorCode } from "#protocol/errors.ts";
import type { GatewayId, RankId, RequestId } from "#protocol/ids.ts";
import { BLOCK_TOKENS, type KvEndpoint } from "#protocol/kv.ts";
import type { Cancelled } from "#protocol/prefill.ts";
import type { FinishReason, RequestHead } from "#protocol/request.ts";
import type { Load, Refused } from "#protocol/worker.ts";
import { atMost } from "#service/at-most.ts";
import { AttemptMemory } from "#service/attempt-memory.ts";
import type { Clock } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { HistogramSeries, Metrics } from "#service/metrics.ts";
import type { ConstraintDesk } from "./constraint-desk.ts";
import { DecodeBatch, type DecodeSequence } from "./decode-batch.ts";
import { codeOf, type DecodeRequest, type Ending } from "./decode-request.ts";
import { KvReceiver } from "./kv-receiver.ts";
import { judgeReservation, refusal } from "./reservation-desk.ts";
import type { TokenStream } from "./token-stream.ts";
import { NO_WORK } from "./work-done.ts";

export interface DecodeRequestsParts {
  readonly engine: Engine;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly rankId: RankId;
  readonly epoch: number;
  readonly isJoined: () => boolean;
  readonly endpoint: KvEndpoint;
  readonly config: { readonly tpotGoalMs: number };
  readonly stream: TokenStream;
  readonly constraints: ConstraintDesk;
  /** The step loop cannot go on. */
  readonly fail: (error: unknown) => void;
}

/** How long a cancel may wait for the running step. */
const CANCEL_WAIT_MS = 5_000;

/**
 * Owns the requests of a decode rank.
 *
 *   reserved -> starting -> decoding -> leaving -> gone
 *       `-> lapsed  `-> transfer failed, cancelled, superseded -> leaving -> gone
 *
 * 1 a request counts until the engine has let go of it, also while it has no slot because it was preempted
 * 2 of one request at most one attempt is here that is not leaving; an older one is refused, a newer one replaces it
 * 3 a decoding request ends with exactly one last word on its stream, unless it was cancelled, replaced or orphaned
 * 4 nothing is attached before every page of the prompt arrived and was verified, or the rank computes them itself
 */
export class DecodeRequests {
  readonly #parts: DecodeRequestsParts;
  readonly #receiver: KvReceiver;
  readonly #memory: AttemptMemory<Ending>;
  readonly #batchTokens: HistogramSeries;
  readonly #stepSeconds: HistogramSeries;
  readonly #batch: DecodeBatch;
  /** Not leaving. */
  readonly #active = new Map<RequestId, DecodeRequest>();
  /** Everything that counts. */
  readonly #held = new Set<DecodeRequest>();
  /** Ended by themselves in the step that is being told. */
  #ended: [DecodeRequest, number][] = [];
  #draining = false;
  #onEmpty: (() => void)[] = [];

  constructor(parts: DecodeRequestsParts) {
    this.#parts = parts;
    this.#batchTokens = parts.metrics.histogram("margay_batch_tokens", { role: "decode" });
    this.#stepSeconds = parts.metrics.histogram("margay_step_seconds", { role: "decode" });
    this.#receiver = new KvReceiver(parts.clock);
    this.#memory = new AttemptMemory(parts.clock);
    this.#batch = new DecodeBatch({
      engine: parts.engine,
      onPreempted: () => parts.metrics.count("margay_preemptions_total", {}),
      onStepped: (rows, ms) => this.#stepped(rows, ms),
      fail: parts.fail,
    });
  }

  /** Counts whoever is here, and the prompt tokens this rank still has to compute itself. */
  get load(): Pick<Load, "requests" | "pendingPrefillTokens" | "prefillTokensPerSecond" | "work"> {
    const { promptTokensLeft: pendingPrefillTokens, done: work } = this.#batch;
    return { requests: this.#held.size, pendingPrefillTokens, prefillTokensPerSecond: 0, work };
  }

  reserve(message: ReserveKv): ReserveReply {
    const { head } = message;
    const ended = this.#memory.recall(head);
    const active = this.#active.get(head.requestId);
    if (ended !== null || (active && active.head.attempt > head.attempt)) {
      this.#countDuplicate("reserve-kv");
      return this.#refuse(codeOf(ended), "this attempt is over");
    }
    if (active?.head.attempt === head.attempt) {
      this.#countDuplicate("reserve-kv");
      return { kind: "reserved", reservation: active.reservation };
    }
    if (active !== undefined) this.#abandon(active, "cancelled");
    const refused = judgeReservation(message, {
      nowMs: this.#parts.clock.now(),
      epoch: this.#parts.epoch,
      draining: this.#draining,
      alone: !this.#parts.isJoined(),
      vocabSize: this.#parts.engine.info.vocabSize,
      contextLength: this.#parts.engine.info.contextLength,
      poolTokens: this.#parts.engine.info.kvBlocks * BLOCK_TOKENS,
      requests: this.#held.size,
      maxRequests: this.#parts.engine.info.slots,
      pressed: this.#batch.pressed,
      nextStepMs: this.#batch.pace.stepMs(this.#held.size + 1),
      goalMs: this.#parts.config.tpotGoalMs,
      retryAfterMs: this.#retryAfterMs(),
    });
    return refused === null ? this.#open(message) : this.#refuse(refused.code, refused.detail, refused.retryAfterMs);
  }

  /** Resolves when decoding begins, or with why it will not. */
  start(message: StartDecode): Promise<StartReply> {
    const { head, handle, epoch } = message;
    const request = this.#active.get(head.requestId);
    if (epoch !== this.#parts.epoch) return this.#no("stale_epoch", `this rank is in epoch ${this.#parts.epoch}`);
    if (request?.head.attempt !== head.attempt) {
      const ended = this.#memory.recall(head);
      if (ended === null) return this.#no("unknown_request", "nothing is reserved for this attempt");
      this.#countDuplicate("start-decode");
      if (ended !== "superseded" && ended.start !== null) return ended.start;
      return this.#no(codeOf(ended), "this attempt is over");
    }
    if (!sameHandle(handle, request.reservation.handle)) {
      return this.#no("unknown_request", "the handle is another reservation's");
    }
    if (request.start !== null) this.#countDuplicate("start-decode");
    request.start ??= this.#start(request, message);
    return request.start;
  }

  /** Ends an attempt and all before it. Resolves, when nothing of them is held, with what there was. */
  async cancel(head: RequestHead): Promise<Cancelled> {
    this.#memory.note(head, { code: "cancelled", start: null });
    this.#parts.stream.drop(head);
    const held = [...this.#held].filter(
      (request) => request.head.requestId === head.requestId && request.head.attempt <= head.attempt,
    );
    for (const request of held) this.#abandon(request, "cancelled");
    const released = Promise.all(held.map((request) => request.released));
    await atMost(this.#parts.clock, CANCEL_WAIT_MS, released);
    const gpuMs = held.reduce((sum, { sequence }) => sum + (sequence?.work.gpuMs ?? 0), 0);
    return { kind: "cancelled", known: held.length > 0, gpuMs };
  }

  /** The owner of these requests is gone: nobody is told. */
  endOwner(owner: GatewayId): void {
    for (const request of [...this.#active.values()]) {
      if (request.head.owner !== owner) continue;
      this.#parts.metrics.count("margay_orphans_total", { role: "decode" });
      this.#abandon(request, "cancelled");
    }
  }

  /** What waits for its pages needs no step yet, and goes on in the next group. */
  endAll(detail: string): void {
    const decoding = [...this.#active.values()].filter(({ phase }) => phase === "decoding");
    if (decoding.length > 0) this.#parts.logger.warn({ requests: decoding.length }, detail);
    for (const request of decoding) this.#finish(request, null, "worker_lost");
    this.#parts.stream.flush();
  }

  /** Takes no more reservations; what is not done at `deadlineMs` (epoch milliseconds) ends as `draining`. */
  async drain(deadlineMs: number): Promise<void> {
    const { clock, stream } = this.#parts;
    this.#draining = true;
    await this.#emptied(deadlineMs - clock.now());
    for (const request of [...this.#active.values()]) {
      if (request.phase === "decoding") this.#finish(request, null, "draining");
      else this.#leave(request, "draining", true);
    }
    stream.flush();
    await this.#emptied(CANCEL_WAIT_MS);
  }

  /** Plans nothing more, forgets all tokens. */
  stop(): void {
    this.#batch.stop();
    this.#parts.stream.close();
    this.#parts.constraints.close();
  }

  onStep(result: StepResult): void {
    this.#batch.onStep(result);
  }

  onEvent(event: EngineEvent): void {
    if (event.kind === "received") this.#parts.metrics.observe("margay_kv_transfer_seconds", {}, event.ms / 1000);
    if (event.kind === "lapsed") {
      const lapsed = [...this.#held].find(
        ({ sequence, reservation }) => sequence === null && sameHandle(reservation.handle, event.handle),
      );
      if (lapsed !== undefined) this.#leave(lapsed, "reservation_expired", true);
    }
    this.#receiver.onEvent(event);
  }

  #open(message: ReserveKv): ReserveReply {
    const { engine, rankId, epoch, endpoint, logger } = this.#parts;
    const { head, generation, deadlineMs } = message;
    try {
      const reserve = this.#batch.opening(generation.tokens.length);
      const { handle, cachedTokens } = engine.openSequence({ generation, mode: "receive", deadlineMs, reserve });
      const request: DecodeRequest = {
        head,
        generation,
        reservation: { rankId, epoch, handle, endpoint, cachedTokens, deadlineMs },
        capacity: reserve,
        phase: "reserved",
        start: null,
        ending: "unknown_request",
        sequence: null,
        text: null,
        released: Promise.resolve(),
        startedMs: 0,
      };
      this.#active.set(head.requestId, request);
      this.#held.add(request);
      this.#receiver.expect(handle);
      return { kind: "reserved", reservation: request.reservation };
    } catch (error) {
      const code = refusalCode(error);
      if (code === "internal") logger.error({ error }, "a request could not be reserved for");
      return this.#refuse(code, "", code === "busy" ? this.#retryAfterMs() : null);
    }
  }

  async #start(request: DecodeRequest, message: StartDecode): Promise<StartReply> {
    const { pages, firstToken, transferDeadlineMs } = message;
    const { engine, clock, stream } = this.#parts;
    const { head, generation, capacity, reservation } = request;
    const { handle } = reservation;
    const given = Array.from(generation.tokens);
    request.phase = "starting";
    let transfer = { pages: 0, bytes: 0, ms: 0 };
    if (firstToken !== null) {
      const most = Math.min(generation.promptLength + generation.maxNewTokens, engine.info.contextLength);
      if (firstToken >= engine.info.vocabSize || most - given.length < 2) {
        this.#leave(request, "invalid_request", true);
        return this.#refuse("invalid_request", "the first token leaves nothing to generate, or is no token");
      }
    }
    if (pages) {
      const arrival = await this.#receiver.arrived(handle, transferDeadlineMs);
      if (request.phase !== "starting") return this.#refuse(request.ending, "the attempt ended before it began");
      if (arrival.kind === "failed") {
        this.#leave(request, "transfer_failed", true);
        return this.#refuse("transfer_failed", arrival.cause);
      }
      transfer = arrival;
    }
    let length: number;
    try {
      length = engine.attach(handle, firstToken);
    } catch (error) {
      this.#leave(request, "transfer_failed", true);
      return this.#refuse("transfer_failed", error instanceof Error ? error.message.slice(0, 500) : "not attached");
    }
    request.phase = "decoding";
    request.startedMs = clock.monotonic();
    const tokens = firstToken === null ? given : [...given, firstToken];
    stream.open(head, tokens.length - generation.promptLength, generation.sampling.topLogprobs);
    request.sequence = this.#batch.begin(
      generation,
      {
        onTokens: ({ tokens, logprobs }) => {
          for (const [i, token] of tokens.entries()) {
            stream.emit(head, token, logprobs[i] ?? null);
            request.text?.push(token);
          }
        },
        onFinish: (finish) => this.#ended.push([request, finish]),
      },
      { handle, tokens, length, capacity },
    );
    this.#follow(request, request.sequence);
    return { kind: "started", pages: transfer.pages, bytes: transfer.bytes, transferMs: transfer.ms };
  }

  /** Has a text with a constraint wait for what it may go on with, from its first token on. */
  #follow(request: DecodeRequest, sequence: DecodeSequence): void {
    const { constraint, promptLength } = request.generation;
    if (constraint === null) return;
    const { constraints, logger } = this.#parts;
    request.text = constraints.begin(constraint, sequence.tokens.slice(promptLength), {
      allow: (mask) => this.#batch.allow(sequence, mask),
      fail: (reason) => {
        logger.warn({ request: request.head.requestId, reason }, "a constraint could not be followed");
        this.#finish(request, null, "internal");
      },
    });
  }

  /** A step's tokens are in their streams: they leave before sequences are closed and anything else happens. */
  #stepped(rows: number, ms: number): void {
    const { stream } = this.#parts;
    const ended = this.#ended;
    this.#ended = [];
    for (const [request, finish] of ended) {
      const error = finish === FINISH.numeric ? "numeric" : null;
      stream.end(request.head, this.#lastWord(request, finishReason(finish), error));
    }
    stream.stepped();
    for (const [request, finish] of ended) this.#leave(request, "unknown_request", finish !== FINISH.numeric);
    this.#batchTokens.observe(rows);
    this.#stepSeconds.observe(ms / 1000);
  }

  #finish(request: DecodeRequest, finish: FinishReason | null, error: ErrorCode | null): void {
    this.#parts.stream.end(request.head, this.#lastWord(request, finish, error));
    this.#leave(request, error ?? "unknown_request", true);
  }

  #lastWord(request: DecodeRequest, finish: FinishReason | null, error: ErrorCode | null): DecodeDone {
    const { sequence, reservation, startedMs } = request;
    const decodeMs = Math.max(0, this.#parts.clock.monotonic() - startedMs);
    const work = sequence?.work ?? NO_WORK;
    return { finish, error, cachedTokens: reservation.cachedTokens, ...work, decodeMs };
  }

  /** Ends an attempt nobody waits for any more. */
  #abandon(request: DecodeRequest, code: ErrorCode): void {
    this.#parts.stream.drop(request.head);
    this.#leave(request, code, true);
  }

  #leave(request: DecodeRequest, code: ErrorCode, keep: boolean): void {
    if (request.phase === "leaving") return;
    request.phase = "leaving";
    request.ending = code;
    this.#memory.note(request.head, { code, start: code === "cancelled" ? null : request.start });
    if (this.#active.get(request.head.requestId) === request) this.#active.delete(request.head.requestId);
    const { sequence, reservation } = request;
    request.text?.close();
    request.released =
      sequence === null ? this.#batch.close(reservation.handle, keep) : this.#batch.end(sequence, keep);
    this.#receiver.forget(reservation.handle, "the attempt ended");
    void request.released.then(() => {
      this.#held.delete(request);
      if (this.#held.size > 0) return;
      for (const resolve of this.#onEmpty) resolve();
      this.#onEmpty = [];
    });
  }

  async #emptied(ms: number): Promise<void> {
    if (this.#held.size === 0) return;
    const empty = new Promise<void>((resolve) => this.#onEmpty.push(resolve));
    await atMost(this.#parts.clock, ms, empty);
  }

  /** When the request that is closest to its length ends, within sensible bounds. */
  #retryAfterMs(): number {
    const stepMs = this.#batch.pace.stepMs(this.#held.size) || 10;
    return Math.min(5_000, Math.max(50, Math.ceil(Math.min(this.#batch.tokensLeft, 100) * stepMs)));
  }

  #no(code: ErrorCode, detail: string): Promise<Refused> {
    return Promise.resolve(this.#refuse(code, detail));
  }

  #refuse(code: ErrorCode, detail: string, retryAfterMs: number | null = null): Refused {
    this.#parts.metrics.count("margay_worker_refused_total", { role: "decode", code });
    return refusal(code, detail, retryAfterMs);
  }

  #countDuplicate(kind: "reserve-kv" | "start-decode"): void {
    this.#parts.metrics.count("margay_duplicate_messages_total", { kind });
  }
}
