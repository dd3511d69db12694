import { type DecodeDone, ReserveKv, ReserveReply, StartDecode, StartReply } from "#protocol/decode.ts";
import { asMargayError, MargayError } from "#protocol/errors.ts";
import type { Reservation } from "#protocol/kv.ts";
import { type PrefillDone, PrefillReply, PrefillTarget, PrefillWork, TargetReply } from "#protocol/prefill.ts";
import type { Generation } from "#protocol/request.ts";
import { subjects } from "#protocol/subjects.ts";
import type { Refused, Role } from "#protocol/worker.ts";
import { PAIR_COOL_MS, type Rank, ranksOf } from "../fleet/fleet.ts";
import { choosePrefill } from "../placement/place.ts";
import { ASK_FAULT_COOL_MS, askRank } from "./ask-rank.ts";
import { ANSWER_MS, prefillMs, SILENCE_MS, STALL_MS, TRANSFER_MS } from "./deadlines.ts";
import { Interruption, within } from "./interruption.ts";
import type { Passage } from "./passage.ts";
import { type FirstToken, pagesLost, prefillListener } from "./prefill-outcome.ts";
import { refusalError } from "./refusal-error.ts";
import { type Leg, releaseLeg } from "./release.ts";
import type { PrefillOutcome } from "./request-board.ts";
import type { FlowParts } from "./request-flow.ts";
import { resumeStream } from "./resume-stream.ts";
import { leave, type Seat } from "./waiting-room.ts";

/** How long a rank that refused or failed is left alone. */
const BUSY_COOL_MS = 100;
/** The bus is back for us before it is for a rank. */
const ASK_AGAIN_MS = 500;

/**
 * One placement of a request: its seat, its two legs, and the messages between.
 *
 *   placed -> prefilling and reserving -> first token -> started -> streaming -> released
 *
 * A1 a leg is recorded before its message is sent, so that `release` cancels whatever may have begun
 * A2 only the ranks of this attempt are listened to; the loss of one interrupts what waits for it
 * A3 the prompt is computed while the decode rank is asked; the prefill rank keeps its pages until it hears where to
 * A4 a question that an outage of the bus cut off is asked again: ranks answer a repeated question as they did the first
 */
export class Attempt {
  readonly #parts: FlowParts;
  readonly #passage: Passage;
  readonly #generation: Generation;
  /** Trouble with the decode rank: the attempt cannot go on. */
  readonly #trouble = new Interruption();
  readonly #undo: (() => void)[] = [];
  #seat: Seat | null = null;
  #decodeLeg: Leg | null = null;
  #prefillLeg: Leg | null = null;
  readonly #countLate = (late: PrefillOutcome): void =>
    this.#parts.metrics.count("margay_duplicate_messages_total", { kind: late.kind });
  #onPrefill = this.#countLate;
  #repeatPrefill: (() => void) | null = null;
  #leavePrefill: (() => void) | null = null;
  /** The decode rank's answer. */
  readonly #reserved = Promise.withResolvers<Reservation>();
  /** Resolves when the decode rank is heard. */
  readonly #streaming = Promise.withResolvers<null>();
  /** What a prefill rank told. */
  #first: PrefillDone | null = null;
  #reservedUntilMs = 0;
  #decodeStartMs = 0;
  #stallMs = STALL_MS;

  constructor(parts: FlowParts, passage: Passage) {
    this.#parts = parts;
    this.#passage = passage;
    this.#generation = passage.generation;
    this.#reserved.promise.catch(() => {});
  }

  /** 1: a place on ranks that have room, now or when there is one. */
  async place(): Promise<Seat> {
    const { fleet, waitingRoom, clock, localPrefillTokens } = this.#parts;
    const passage = this.#passage;
    const awake = ranksOf(fleet.snapshot, passage.request.model, "decode").length > 0;
    passage.tell(awake ? "waiting" : "waking", null, null);
    const beganMs = clock.monotonic();
    const query = passage.query(this.#generation, localPrefillTokens);
    const seat = await waitingRoom.enter(query, passage.turn, passage.interruption);
    this.#seat = seat;
    this.#leavePrefill = seat.leavePrefill;
    passage.noteSeat(fleet, query, seat, clock.monotonic() - beganMs);
    passage.tell("placed", seat.prefill?.workerId ?? null, seat.decode.workerId);
    return seat;
  }

  /**
   * 2: the prompt's work, to the prefill rank of the seat, or nothing where the decode rank computes it itself.
   * 4 to 6 are `first`: the prompt is computed, its pages are on their way.
   */
  async sendPrefill(seat: Seat): Promise<{ readonly first: Promise<FirstToken> }> {
    this.#reservedUntilMs = this.#parts.clock.now() + this.#prefillMs(seat.prefill);
    if (seat.prefill === null) {
      // The decode rank's first token comes after a whole prompt.
      this.#stallMs += this.#prefillMs(null);
      return { first: Promise.resolve({ outcome: null, workerId: null, ended: false }) };
    }
    this.#passage.tell("prefilling", seat.prefill.workerId, seat.decode.workerId);
    const first = this.#prefill(seat.prefill, seat);
    first.catch(() => {});
    return { first };
  }

  /** 3: pages on the decode rank. A refusal ends the attempt, whatever it waits for. */
  reserveDecode(seat: Seat): void {
    this.#reserve(seat).then(this.#reserved.resolve, (error) => {
      this.#fail(asMargayError(error));
      this.#reserved.reject(error);
    });
  }

  async #reserve(seat: Seat): Promise<Reservation> {
    const { bus, gatewayId, fleet, board } = this.#parts;
    const { rankId, epoch } = seat.decode;
    const head = this.#passage.head(gatewayId);
    this.#decodeLeg = { rankId, epoch };
    this.#watch(this.#decodeLeg, "decode");
    this.#undo.push(board.post(this.#entry(rankId, epoch)));
    if (!fleet.isAlive(rankId, epoch)) throw new MargayError("worker_lost");
    const message = {
      kind: "reserve-kv",
      head,
      generation: this.#generation,
      epoch,
      deadlineMs: this.#reservedUntilMs,
    } as const;
    const reply = await this.#ask(
      () => bus.request(subjects.reserve(rankId), ReserveKv, message, ReserveReply, ANSWER_MS),
      rankId,
    );
    if (reply.kind === "reserved") return this.#passage.noteReserved(reply.reservation);
    this.#decodeLeg = null;
    throw this.#refusedBy(rankId, reply);
  }

  /** 7: the decode rank attaches the pages and begins. */
  async startDecode(first: FirstToken): Promise<boolean> {
    if (first.ended || this.#passage.enough) return false;
    const { bus, clock, gatewayId, fleet } = this.#parts;
    const { rankId, epoch, handle } = await this.#reserved.promise;
    const sender = this.#prefillLeg;
    if (sender !== null) this.#watch(sender, "prefill");
    const message = {
      kind: "start-decode",
      head: this.#passage.head(gatewayId),
      handle,
      epoch,
      pages: first.outcome !== null,
      firstToken: first.outcome?.firstToken ?? null,
      transferDeadlineMs: clock.now() + TRANSFER_MS,
    } as const;
    const ask = () => bus.request(subjects.start(rankId), StartDecode, message, StartReply, TRANSFER_MS + ANSWER_MS);
    const answer = this.#ask(ask, rankId).then((reply) => {
      if (sender !== null && reply.kind === "started") this.#passage.noteTransfer(reply);
      return reply;
    });
    // A rank whose tokens come has begun, also where its answer was lost or comes after them.
    const reply = await Promise.race([answer, this.#streaming.promise]);
    if (reply?.kind === "refused") {
      if (reply.code === "transfer_failed" && sender !== null) this.#blamePair(sender.rankId, rankId);
      throw this.#refusedBy(rankId, reply);
    }
    if (sender !== null) {
      fleet.pairWorked(sender.rankId, rankId);
      // The decode rank has everything: whatever becomes of the other does not matter any more.
      this.#prefillLeg = null;
      this.#onPrefill = this.#countLate;
    }
    return true;
  }

  /** 8: tokens flow to the listener until the decode rank's last word; null when there was nothing to decode. */
  async streamTokens(started: boolean): Promise<DecodeDone | null> {
    if (!started) return null;
    const { clock } = this.#parts;
    const passage = this.#passage;
    this.#decodeStartMs = clock.monotonic();
    passage.noteStarted();
    passage.tell("decoding", this.#seat?.prefill?.workerId ?? null, this.#seat?.decode.workerId ?? null);
    const enough = passage.whenEnough.then(() => null);
    try {
      const done = await passage.interruption.race(this.#trouble.race(Promise.race([passage.tokens.done, enough])));
      // The rank ended it by itself and holds nothing; after "enough" it has to be told.
      if (done !== null) this.#decodeLeg = null;
      return done;
    } finally {
      passage.timings.decodeMs += clock.monotonic() - this.#decodeStartMs;
    }
  }

  /** Gives everything back, however the attempt ended. */
  release(): void {
    for (const undo of this.#undo) undo();
    this.#passage.tokens.leave();
    this.#dropPrefillLeg();
    if (this.#decodeLeg !== null) this.#cancel("decode", this.#decodeLeg);
    this.#leavePrefill?.();
    if (this.#seat !== null) leave(this.#seat);
  }

  #entry(rankId: Rank["rankId"], epoch: number) {
    const { clock, gatewayId } = this.#parts;
    const { tokens, request, attempt } = this.#passage;
    const head = this.#passage.head(gatewayId);
    this.#passage.askBy((seq) => {
      const message = { kind: "resume-stream", head, seq } as const;
      void resumeStream(this.#parts, this.#passage, rankId, message, (error) => this.#fail(error));
    });
    return {
      requestId: request.requestId,
      attempt,
      decode: { rankId, epoch },
      onPrefill: (outcome: PrefillOutcome) => this.#onPrefill(outcome),
      onChunk: (chunk: Parameters<typeof tokens.take>[0]) => {
        tokens.take(chunk, clock.monotonic());
        this.#streaming.resolve(null);
      },
      onSweep: (nowMs: number) => {
        if (this.#decodeStartMs === 0) return;
        if (nowMs - Math.max(tokens.lastMs, this.#decodeStartMs) > SILENCE_MS) tokens.ask(nowMs);
        if (nowMs - Math.max(tokens.progressMs, this.#decodeStartMs) > this.#stallMs) {
          this.#passage.avoid.add(rankId);
          this.#fail(new MargayError("timeout", "the decode rank made no token for too long"));
        }
      },
      onReconnect: (nowMs: number) => {
        if (this.#decodeStartMs > 0) tokens.ask(nowMs);
        else this.#repeatPrefill?.();
      },
      get received() {
        return tokens.received;
      },
    };
  }

  /**
   * The prompt's work, from rank to rank: when one refuses, fails or is lost, another gets the same work for the same
   * reservation, while that lives.
   */
  async #prefill(chosen: Rank, seat: Seat): Promise<FirstToken> {
    const { fleet, clock, localPrefillTokens } = this.#parts;
    let rank: Rank | null = chosen;
    let failure: MargayError | null = null;
    // Only the first rank is asked before the decode rank has answered.
    for (let known: Reservation | null = null; rank !== null && this.#reservedUntilMs > clock.now(); ) {
      try {
        const outcome = await this.#prefillOn(rank, seat, known);
        return this.#tellFirst(outcome, rank);
      } catch (thrown) {
        failure = this.#passage.interruption.error ?? asMargayError(thrown);
        if (failure.retry === "never" || failure.code === "no_worker" || this.#trouble.error !== null) throw failure;
        this.#passage.avoid.add(rank.rankId);
        this.#dropPrefillLeg();
        if (failure.code === "transfer_failed") fleet.pairFailed(rank.rankId, seat.decode.rankId, PAIR_COOL_MS);
        const query = this.#passage.query(this.#generation, localPrefillTokens);
        rank = choosePrefill(fleet.snapshot, fleet.prefixes, query, seat.decode, clock.monotonic());
        if (rank !== null && this.#passage.avoid.has(rank.rankId)) rank = null;
        if (rank === null) break;
        known = await this.#passage.interruption.race(this.#trouble.race(this.#reserved.promise));
        this.#moveSeat(rank, seat.decode);
      }
    }
    throw failure ?? new MargayError("reservation_expired");
  }

  /** `known`: the decode rank's answer where it is there; else it is sent after the work. */
  async #prefillOn(rank: Rank, seat: Seat, known: Reservation | null): Promise<PrefillDone> {
    const { bus, clock, fleet, gatewayId } = this.#parts;
    const { rankId, epoch } = rank;
    if (!fleet.isAlive(rankId, epoch)) throw new MargayError("worker_lost");
    const outcome = Promise.withResolvers<PrefillDone>();
    outcome.promise.catch(() => {});
    const stopWatching = fleet.onLost((lost, lostEpoch) => {
      if (lost === rankId && lostEpoch === epoch)
        outcome.reject(new MargayError("worker_lost", "the prefill rank was lost"));
    });
    const deadlineMs = this.#reservedUntilMs;
    const head = this.#passage.head(gatewayId);
    const generation = this.#generation;
    const message = { kind: "prefill-work", head, generation, reservation: known, epoch, deadlineMs } as const;
    const ask = async (): Promise<void> => {
      const reply = await bus.request(subjects.prefill(rankId), PrefillWork, message, PrefillReply, ANSWER_MS);
      if (reply.kind === "refused") throw this.#refusedBy(rankId, reply);
    };
    this.#prefillLeg = { rankId, epoch };
    this.#onPrefill = prefillListener(rank, outcome, {
      onDuplicate: this.#countLate,
      onPagesLost: ({ code, detail }) => {
        if (code === "transfer_failed") this.#blamePair(rankId, seat.decode.rankId);
        this.#fail(pagesLost(detail));
      },
    });
    try {
      await this.#ask(ask, rankId);
      if (known === null) void this.#direct(this.#prefillLeg).catch(outcome.reject);
      // After an outage: the outcome may have been lost with the bus, and a rank that is asked again tells it again.
      this.#repeatPrefill = () =>
        void ask().catch((thrown) => {
          const error = asMargayError(thrown);
          if (error.code === "worker_lost") clock.after(ASK_AGAIN_MS, () => this.#repeatPrefill?.());
          else if (error.code !== "bus_unavailable") outcome.reject(error);
        });
      const late = (): MargayError => new MargayError("timeout", "the prefill took too long");
      const work = within(clock, deadlineMs - clock.now(), outcome.promise, late);
      return await this.#passage.interruption.race(this.#trouble.race(work));
    } finally {
      stopWatching();
      this.#repeatPrefill = null;
    }
  }

  /** Tells the prefill rank where the pages go, when the decode rank has answered and if they are still wanted. */
  async #direct(leg: Leg): Promise<void> {
    const { bus, gatewayId } = this.#parts;
    const { rankId, epoch } = leg;
    const target = await this.#reserved.promise.catch(() => null);
    const unwanted = (): boolean => this.#prefillLeg !== leg || (this.#first?.finish ?? null) !== null;
    if (target === null || unwanted()) return;
    const head = this.#passage.head(gatewayId);
    const message = { kind: "prefill-target", head, reservation: target, epoch } as const;
    try {
      const reply = await this.#ask(
        () => bus.request(subjects.target(rankId), PrefillTarget, message, TargetReply, ANSWER_MS),
        rankId,
      );
      if (reply.kind === "refused") throw this.#refusedBy(rankId, reply);
    } catch (thrown) {
      if (unwanted()) return;
      if (this.#first !== null) this.#fail(pagesLost("the prefill rank heard of no destination"));
      throw thrown;
    }
  }

  #tellFirst(outcome: PrefillDone, rank: Rank): FirstToken {
    const passage = this.#passage;
    passage.notePrefilled(outcome);
    this.#leavePrefill?.();
    this.#first = outcome;
    if (outcome.firstToken !== null) {
      const seq = this.#generation.tokens.length - this.#generation.promptLength;
      const tokens = Int32Array.of(outcome.firstToken);
      passage.tokens.take({ seq, tokens, logprobs: outcome.logprobs, done: null }, this.#parts.clock.monotonic());
    }
    return { outcome, workerId: rank.workerId, ended: outcome.finish !== null };
  }

  #ask<T>(question: () => Promise<T>, rankId: Rank["rankId"]): Promise<T> {
    return askRank({ ...this.#parts, passage: this.#passage, trouble: this.#trouble, rankId, question });
  }

  #refusedBy(rankId: Rank["rankId"], refusal: Refused): MargayError {
    const error = refusalError(refusal);
    if (error.code === "busy" || error.code === "draining")
      this.#parts.fleet.cool(rankId, Math.min(refusal.retryAfterMs ?? BUSY_COOL_MS, ASK_FAULT_COOL_MS));
    else this.#passage.avoid.add(rankId);
    return error;
  }

  /** The attempt cannot go on; after the decode rank's last word nothing that becomes of it matters. */
  #fail(error: MargayError): void {
    if (!this.#passage.tokens.ended) this.#trouble.raise(error);
  }

  /** Another prefill rank has the work now. */
  #moveSeat(prefill: Rank, decode: Rank): void {
    this.#leavePrefill?.();
    this.#parts.fleet.pairTried(prefill.rankId, decode.rankId);
    this.#leavePrefill = this.#parts.fleet.occupy(prefill, this.#generation.tokens.length);
  }

  #blamePair(prefill: Rank["rankId"], decode: Rank["rankId"]): void {
    this.#parts.fleet.pairFailed(prefill, decode, PAIR_COOL_MS);
    this.#passage.avoid.add(prefill);
  }

  /** Time the reservation lives before decoding begins, never past the request. */
  #prefillMs(prefill: Rank | null): number {
    const leftMs = this.#passage.request.deadlineMs - this.#parts.clock.now();
    return Math.max(1, Math.min(leftMs, prefillMs(this.#generation.tokens.length, prefill?.load ?? null)));
  }

  /** Until the attempt is over. The functions are made here, where they keep no message alive. */
  #watch(leg: Leg, role: Role): void {
    const onLost = (): void => {
      if (role === "decode") this.#fail(new MargayError("worker_lost", "the decode rank was lost"));
      else if (this.#prefillLeg === leg) this.#fail(pagesLost("the prefill rank was lost"));
    };
    this.#undo.push(
      this.#parts.fleet.onLost((rankId, epoch) => void (rankId === leg.rankId && epoch === leg.epoch && onLost())),
    );
  }

  #dropPrefillLeg(): void {
    this.#onPrefill = this.#countLate;
    if (this.#prefillLeg !== null) this.#cancel("prefill", this.#prefillLeg);
    this.#prefillLeg = null;
  }

  #cancel(role: Role, leg: Leg): void {
    this.#passage.releasing(role, releaseLeg(this.#parts, this.#passage.head(this.#parts.gatewayId), leg));
  }
}
