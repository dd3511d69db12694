import {
  createStepLoop,
  type Engine,
  type EngineEvent,
  FINISH,
  refusalCode,
  rowsOf,
  type StepLogprobs,
  type StepLoop,
  type StepResult,
  stepEntries,
} from "#native";
import type { ErrorCode } from "#protocol/errors.ts";
import type { GatewayId, RankId, RequestId } from "#protocol/ids.ts";
import { BLOCK_TOKENS, type Reservation, type SequenceHandle } from "#protocol/kv.ts";
import type {
  Cancelled,
  PrefillDone,
  PrefillFailed,
  PrefillReply,
  PrefillTarget,
  PrefillWork,
  TargetReply,
} from "#protocol/prefill.ts";
import type { RequestHead } from "#protocol/request.ts";
import type { Load, Refused } from "#protocol/worker.ts";
import { atMost } from "#service/at-most.ts";
import { AttemptMemory } from "#service/attempt-memory.ts";
import type { Clock } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { HistogramSeries, Metrics } from "#service/metrics.ts";
import { KvSender } from "./kv-sender.ts";
import { openPrompt } from "./open-prompt.ts";
import { planPrefill } from "./prefill-batcher.ts";
import { judgeReservation, judgeWork } from "./prefill-intake.ts";
import { PrefillRate } from "./prefill-rate.ts";
import { doneWith, holdsSequence, type PrefillRequest, shareOfLastStep, untoldMs } from "./prefill-request.ts";
import { findLead, leadIsOver } from "./prefix-lead.ts";

export type PrefillOutcome = PrefillDone | PrefillFailed;

export interface PrefillRequestsParts {
  readonly engine: Engine;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly rankId: RankId;
  readonly epoch: number;
  readonly isJoined: () => boolean;
  /** Tells the owner how an attempt ended; may be lost. */
  readonly tell: (owner: GatewayId, outcome: PrefillOutcome) => void;
  readonly onChunk?: (head: RequestHead, rows: number, computeMs: number) => void;
  /** The step loop cannot go on. */
  readonly fail: (error: unknown) => void;
}

/** How long a cancel may wait for the decode rank to let go of pages on their way. */
const CANCEL_WAIT_MS = 1_000;

/**
 * Owns the requests of a prefill rank.
 *
 *   admitted -> (waiting ->) computing -> (first token told) -> computed -> sending -> gone
 *                  `-> failed, cancelled, superseded -> leaving -> gone
 *
 * 1 the owner hears of every end but those it asked for (cancel, newer attempt), at once, whatever came before
 * 2 a request is counted until its slot is free: no step names it and no page of it is on its way
 * 3 pages leave once a destination is known, at the start or later; a prompt that is computed waits for it in `computed`,
 *   until its deadline
 * 4 a prompt waits while an older one computes blocks that both begin with; its sequence is opened anew after that, and
 *   finds them in the cache
 * 5 of one request at most one attempt is here that is not leaving; an older one is refused, a newer one replaces it
 */
export class PrefillRequests {
  readonly #parts: PrefillRequestsParts;
  readonly #sender: KvSender;
  readonly #rate: PrefillRate;
  readonly #memory: AttemptMemory<PrefillOutcome | "cancelled">;
  readonly #batchTokens: HistogramSeries;
  readonly #stepSeconds: HistogramSeries;
  readonly #loop: StepLoop;
  /** Not leaving, in order of arrival. */
  readonly #active = new Map<RequestId, PrefillRequest>();
  /** Everything that holds a slot. */
  readonly #slots = new Map<number, PrefillRequest>();
  #draining = false;
  #onEmpty: (() => void)[] = [];

  constructor(parts: PrefillRequestsParts) {
    const { engine } = parts;
    this.#parts = parts;
    this.#batchTokens = parts.metrics.histogram("margay_batch_tokens", { role: "prefill" });
    this.#stepSeconds = parts.metrics.histogram("margay_step_seconds", { role: "prefill" });
    this.#sender = new KvSender(engine);
    this.#rate = new PrefillRate(engine.info.maxStepTokens);
    this.#memory = new AttemptMemory(parts.clock);
    this.#loop = createStepLoop({
      engine,
      plan: (inFlight) => planPrefill(this.#of("computing"), inFlight, engine.info.maxStepTokens),
      onResult: (result) => this.#obey(result),
      onFault: parts.fail,
    });
  }

  /** Counts whoever holds a slot. */
  get load(): Pick<Load, "requests" | "pendingPrefillTokens" | "prefillTokensPerSecond" | "work"> {
    const { tokensPerSecond: prefillTokensPerSecond, work } = this.#rate;
    const pendingPrefillTokens = this.#of("waiting", "computing").reduce((sum, request) => sum + request.left, 0);
    return { requests: this.#slots.size, pendingPrefillTokens, prefillTokensPerSecond, work };
  }

  accept(work: PrefillWork): PrefillReply {
    const { head } = work;
    const ended = this.#memory.recall(head);
    const active = this.#active.get(head.requestId);
    if (ended === "cancelled" || ended === "superseded" || (active && active.head.attempt > head.attempt)) {
      this.#countDuplicate();
      return this.#refuse({ kind: "refused", code: "cancelled", detail: "this attempt is over", retryAfterMs: null });
    }
    if (ended !== null) {
      // The outcome may have been lost with the bus; the owner ignores what it has heard.
      this.#countDuplicate();
      this.#parts.tell(head.owner, ended);
      return { kind: "prefill-accepted", cachedTokens: ended.kind === "prefill-done" ? ended.cachedTokens : 0 };
    }
    if (active?.head.attempt === head.attempt) {
      this.#countDuplicate();
      return { kind: "prefill-accepted", cachedTokens: active.cachedTokens };
    }
    if (active !== undefined) this.#leave(active, true);
    const refusal = judgeWork(work, {
      nowMs: this.#parts.clock.now(),
      epoch: this.#parts.epoch,
      draining: this.#draining,
      alone: !this.#parts.isJoined(),
      vocabSize: this.#parts.engine.info.vocabSize,
      contextLength: this.#parts.engine.info.contextLength,
      poolTokens: this.#parts.engine.info.kvBlocks * BLOCK_TOKENS,
      maxRequests: this.#parts.engine.info.slots,
      ...this.load,
      stepTokens: this.#parts.engine.info.maxStepTokens,
    });
    return refusal === null ? this.#admit(work) : this.#refuse(refusal);
  }

  /** The pages of a prompt that is here have a destination. */
  direct({ head, reservation, epoch }: PrefillTarget): TargetReply {
    const request = this.#active.get(head.requestId);
    if (epoch !== this.#parts.epoch) {
      return this.#refuse({ kind: "refused", code: "stale_epoch", detail: "another epoch", retryAfterMs: null });
    }
    if (request?.head.attempt !== head.attempt) {
      return this.#refuse({ kind: "refused", code: "cancelled", detail: "this attempt is over", retryAfterMs: null });
    }
    if (request.reservation !== null) {
      this.#countDuplicate("prefill-target");
      return { kind: "done" };
    }
    const wrong = judgeReservation(reservation, request.given);
    if (wrong !== null) return this.#refuse(wrong);
    try {
      this.#send(request, reservation);
    } catch (error) {
      return this.#refuse(this.#refusalOf(error, "pages could not be sent"));
    }
    return { kind: "done" };
  }

  /** Ends an attempt and all before it. Resolves, when nothing of them is held, with what there was. */
  async cancel(head: RequestHead): Promise<Cancelled> {
    this.#memory.note(head, "cancelled");
    const held = [...this.#slots.values()].filter(
      (request) => request.head.requestId === head.requestId && request.head.attempt <= head.attempt,
    );
    for (const request of held) this.#leave(request, true);
    await atMost(this.#parts.clock, CANCEL_WAIT_MS, Promise.all(held.map((request) => this.#released(request))));
    return { kind: "cancelled", known: held.length > 0, gpuMs: untoldMs(held) };
  }

  /** The owner of these requests is gone: nobody is told. */
  endOwner(owner: GatewayId): void {
    for (const request of [...this.#active.values()]) {
      if (request.head.owner !== owner) continue;
      this.#parts.metrics.count("margay_orphans_total", { role: "prefill" });
      this.#memory.note(request.head, "cancelled");
      this.#leave(request, true);
    }
  }

  endAll(detail: string): void {
    for (const request of this.#of("waiting", "computing")) this.#fail(request, "worker_lost", detail);
  }

  /** Takes no more work; what is not computed at `deadlineMs` (epoch milliseconds) fails as `draining`. */
  async drain(deadlineMs: number): Promise<void> {
    const { clock } = this.#parts;
    this.#draining = true;
    await this.#emptied(deadlineMs - clock.now());
    for (const request of [...this.#active.values()]) {
      if (holdsSequence(request)) this.#fail(request, "draining", "the rank was asked to stop");
    }
    await this.#emptied(CANCEL_WAIT_MS);
    for (const request of [...this.#active.values()]) this.#fail(request, "draining", "pages were not taken in time");
  }

  /** Plans nothing more. */
  stop(): void {
    this.#loop.stop();
    for (const request of this.#slots.values()) request.deadline.cancel();
  }

  onStep(result: StepResult): void {
    this.#loop.settle(result);
  }

  onEvent(event: EngineEvent): void {
    if (event.kind === "first-token") this.#hear(event);
    const end = this.#sender.onEvent(event);
    if (end === null) return;
    const request = this.#slots.get(end.handle.slot);
    if (request?.handle.generation !== end.handle.generation) return;
    request.sent = true;
    if (request.phase === "leaving") return;
    if (end.cause !== null) this.#fail(request, "transfer_failed", end.cause);
    else if (request.phase === "sending") this.#leave(request, true);
  }

  #admit(work: PrefillWork): PrefillReply {
    const { engine, clock } = this.#parts;
    const { head, generation, reservation, deadlineMs } = work;
    let handle: SequenceHandle | null = null;
    try {
      const opened = openPrompt(engine, generation, deadlineMs);
      handle = opened.handle;
      const { cachedTokens } = opened;
      const { tokens } = generation;
      const given = tokens.length;
      const lead = findLead(tokens, cachedTokens, this.#of("waiting", "computing"));
      const request: PrefillRequest = {
        ...{ head, generation, tokens, handle, given, cachedTokens, lead },
        admittedMs: clock.monotonic(),
        deadlineMs,
        deadline: clock.after(deadlineMs - clock.now(), () => this.#fail(request, "timeout", "not done in time")),
        phase: lead === null ? "computing" : "waiting",
        left: given - (lead?.tokens ?? cachedTokens),
        ...{ reservation: null, startedMs: null, gpuMs: 0, told: false, sent: false },
        released: Promise.resolve(),
      };
      if (reservation !== null) this.#send(request, reservation);
      this.#active.set(head.requestId, request);
      this.#slots.set(handle.slot, request);
      this.#loop.wake();
      return { kind: "prefill-accepted", cachedTokens };
    } catch (error) {
      if (handle !== null) engine.closeSequence(handle, true);
      return this.#refuse(this.#refusalOf(error, "a prompt could not be admitted"));
    }
  }

  /** What waited for blocks that are computed now, or will never be, goes on. */
  #followLeads(): void {
    for (const request of this.#of("waiting")) {
      if (request.lead !== null && leadIsOver(request.lead)) this.#follow(request);
    }
  }

  #follow(request: PrefillRequest): void {
    const { engine } = this.#parts;
    const { generation, deadlineMs, given, reservation } = request;
    try {
      engine.closeSequence(request.handle, true);
      this.#slots.delete(request.handle.slot);
      const opened = openPrompt(engine, generation, deadlineMs);
      Object.assign(request, { ...opened, phase: "computing", lead: null, left: given - opened.cachedTokens });
      this.#slots.set(opened.handle.slot, request);
      if (reservation !== null) this.#send(request, reservation);
      this.#loop.wake();
    } catch (error) {
      this.#fail(request, "transfer_failed", this.#refusalOf(error, "pages could not be sent").code);
    }
  }

  /** Throws what the engine throws. */
  #send(request: PrefillRequest, reservation: Reservation): void {
    const deadlineMs = Math.min(request.deadlineMs, reservation.deadlineMs);
    if (request.phase !== "waiting") this.#sender.begin(request.handle, reservation, deadlineMs);
    request.reservation = reservation;
    if (request.phase === "computed") this.#handOver(request);
  }

  /** Computed and directed: what is left is the transport's. */
  #handOver(request: PrefillRequest): void {
    request.phase = "sending";
    request.deadline.cancel();
    request.released = this.#loop.close(request.handle, true);
  }

  #of(...phases: readonly PrefillRequest["phase"][]): PrefillRequest[] {
    return [...this.#active.values()].filter(({ phase }) => phases.includes(phase));
  }

  /** The step that computes a prompt's last rows has chosen the token; it is not over. */
  #hear({ handle, token, finish, computeMs, logprobs }: Extract<EngineEvent, { kind: "first-token" }>): void {
    const request = this.#slots.get(handle.slot);
    if (request?.handle.generation !== handle.generation || request.phase !== "computing") return;
    request.startedMs ??= this.#parts.clock.monotonic() - computeMs;
    request.gpuMs += computeMs * shareOfLastStep(request, this.#of("computing"), this.#parts.engine.info.maxStepTokens);
    this.#tellFirst(request, token, logprobs, finish);
  }

  #obey(result: StepResult): void {
    const entries = stepEntries(result);
    const total = rowsOf(entries);
    for (const { slot, generation, rows, tokens, logprobs, finish, length } of entries) {
      const request = this.#slots.get(slot);
      if (request?.handle.generation !== generation || request.phase !== "computing") continue;
      if (finish === FINISH.skipped) continue;
      request.startedMs ??= this.#parts.clock.monotonic() - result.computeMs;
      request.gpuMs += (result.computeMs * rows) / total;
      request.left = request.given - length;
      this.#parts.onChunk?.(request.head, rows, result.computeMs);
      if (finish === FINISH.numeric) this.#fail(request, "numeric", "a logit is not a number");
      else if (tokens.length > 0) this.#finish(request, tokens[0]!, logprobs[0] ?? null, finish);
    }
    this.#followLeads();
    this.#rate.observe(total, result.computeMs);
    this.#batchTokens.observe(total);
    this.#stepSeconds.observe(result.computeMs / 1000);
  }

  /** A prompt's first token goes to the owner before anything else happens, once. Returns what was to be told. */
  #tellFirst(request: PrefillRequest, token: number, logprobs: StepLogprobs | null, finish: number): PrefillDone {
    const at = { rankId: this.#parts.rankId, epoch: this.#parts.epoch, nowMs: this.#parts.clock.monotonic() };
    const done = doneWith(request, at, token, logprobs, finish);
    if (!request.told) this.#conclude(request, done);
    return done;
  }

  #finish(request: PrefillRequest, token: number, logprobs: StepLogprobs | null, ended: number): void {
    const { finish } = this.#tellFirst(request, token, logprobs, ended);
    // A first token that is also the last needs no pages anywhere.
    if (request.sent || (finish !== null && request.reservation === null)) this.#leave(request, true);
    else if (request.reservation !== null) this.#handOver(request);
    else request.phase = "computed";
  }

  #fail(request: PrefillRequest, code: ErrorCode, detail: string): void {
    const { rankId, epoch, logger } = this.#parts;
    const { head } = request;
    logger.warn({ request: head.requestId, attempt: head.attempt, code, detail }, "a prompt failed");
    this.#conclude(request, { kind: "prefill-failed", head, rankId, epoch, code, detail });
    this.#leave(request, code !== "numeric");
  }

  #conclude(request: PrefillRequest, outcome: PrefillOutcome): void {
    request.told = true;
    this.#memory.note(request.head, outcome);
    this.#parts.tell(request.head.owner, outcome);
  }

  #leave(request: PrefillRequest, keep: boolean): void {
    if (request.phase === "leaving") return;
    if (holdsSequence(request)) request.released = this.#loop.close(request.handle, keep);
    request.phase = "leaving";
    request.deadline.cancel();
    if (this.#active.get(request.head.requestId) === request) this.#active.delete(request.head.requestId);
    this.#followLeads();
    void this.#released(request).then(() => {
      if (this.#slots.get(request.handle.slot) === request) this.#slots.delete(request.handle.slot);
      if (this.#slots.size > 0) return;
      for (const resolve of this.#onEmpty) resolve();
      this.#onEmpty = [];
    });
  }

  async #released({ handle, released }: PrefillRequest): Promise<void> {
    await released;
    await this.#sender.settled(handle);
  }

  async #emptied(ms: number): Promise<void> {
    if (this.#slots.size === 0) return;
    await atMost(this.#parts.clock, ms, new Promise<void>((resolve) => this.#onEmpty.push(resolve)));
  }

  #refuse(refusal: Refused): Refused {
    this.#parts.metrics.count("margay_worker_refused_total", { role: "prefill", code: refusal.code });
    return refusal;
  }

  #refusalOf(error: unknown, what: string): Refused {
    const code = refusalCode(error);
    if (code === "internal") this.#parts.logger.error({ error }, what);
    return { kind: "refused", code, detail: "", retryAfterMs: code === "busy" ? 250 : null };
  }

  #countDuplicate(kind: "prefill-work" | "prefill-target" = "prefill-work"): void {
    this.#parts.metrics.count("margay_duplicate_messages_total", { kind });
  }
}
