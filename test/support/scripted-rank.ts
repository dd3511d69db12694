import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import {
  type DecodeDone,
  ReserveKv,
  type ReserveReply,
  ReserveReply as ReserveReplySchema,
  ResumeReply,
  ResumeStream,
  StartDecode,
  type StartReply,
  StartReply as StartReplySchema,
  TokenAcks,
  TokenBatch,
} from "#protocol/decode.ts";
import type { RankId, RequestId, WorkerId } from "#protocol/ids.ts";
import { KvEvents, KvMissed, KvMissedReply } from "#protocol/kv.ts";
import type { ModelCard } from "#protocol/model-card.ts";
import {
  Cancel,
  CancelReply,
  PrefillDone,
  PrefillFailed,
  type PrefillReply,
  PrefillReply as PrefillReplySchema,
  PrefillTarget,
  PrefillWork,
  type TargetReply,
  TargetReply as TargetReplySchema,
} from "#protocol/prefill.ts";
import type { Generation, RequestHead } from "#protocol/request.ts";
import { subjects } from "#protocol/subjects.ts";
import { Goodbye, HEARTBEAT_MS, Heartbeat, type Load, type Refused, type Role } from "#protocol/worker.ts";
import type { Clock, Timer } from "#service/clock.ts";
import { cardOf, loadOf } from "./fleet-of.ts";

/** The token at place `seq` of every answer: so a repeat or a gap shows in the numbers themselves. */
export function tokenAt(seq: number): number {
  return 1000 + seq;
}

export function refusal(code: Refused["code"], retryAfterMs: number | null = null): Refused {
  return { kind: "refused", code, detail: "scripted", retryAfterMs };
}

/** Milliseconds of virtual time per decode step and per prefill. */
export const STEP_MS = 10;
export const PREFILL_MS = 50;

interface Held {
  readonly head: RequestHead;
  readonly generation: Generation;
  /** Tokens made here, the first at place `base`. */
  readonly tokens: number[];
  base: number;
  timer: Timer | null;
  done: DecodeDone | null;
}

/**
 * A rank that obeys the protocol without an engine, and breaks it where a test says so.
 *
 *   made -> joined -> (frozen -> thawed)* -> killed | left
 */
export class ScriptedRank {
  readonly rankId: RankId;
  readonly workerId: WorkerId;
  readonly role: Role;
  readonly model: ModelCard;
  load: Load;
  epoch = 1;
  clockAheadMs = 0;
  kvSeq = -1;
  /** The prefix cache, as chained hashes; null: snapshots are not answered well. */
  cached: readonly string[] | null = [];
  snapshots = 0;
  state: "loading" | "ready" | "draining" = "ready";
  /** What is held here, by request: empty at the end of every test. */
  readonly held = new Map<RequestId, Held>();
  readonly seen: { readonly kind: string; readonly head: RequestHead | null }[] = [];
  readonly acked = new Map<RequestId, number>();
  /** Decides instead of the rank; null: as usual. A promise that never resolves is silence. */
  onReserve: (query: ReserveKv) => ReserveReply | Promise<ReserveReply> | null = () => null;
  onPrefill: (work: PrefillWork) => PrefillReply | Promise<PrefillReply> | null = () => null;
  onTarget: (message: PrefillTarget) => TargetReply | Promise<TargetReply> | null = () => null;
  onStart: (message: StartDecode) => StartReply | Promise<StartReply> | null = () => null;
  onResume: (message: ResumeStream) => ResumeReply | Promise<ResumeReply> = (message) => this.#resume(message);
  onMissed: (missed: KvMissed) => KvMissedReply | null = () => null;
  onCancel: (message: Cancel) => Promise<CancelReply> | null = () => null;
  /** Reservations are made at once and answered after this. */
  late: Promise<void> | null = null;
  /** What becomes of a batch on its way: [] loses it, two of it doubles it. */
  tamper: (batch: TokenBatch) => readonly TokenBatch[] = (batch) => [batch];
  /** Generated tokens after which the rank ends with "stop"; never by default. */
  stopAt = Number.POSITIVE_INFINITY;
  /** False: prefill work is accepted and nothing more is heard of it. */
  finishes = true;
  /** False: decode steps make nothing. */
  steps = true;
  readonly #bus: Bus;
  readonly #clock: Clock;
  #open: (Subscription | Timer)[] = [];
  #beats = 0;
  #frozen: (() => void)[] | null = null;

  constructor(
    bus: Bus,
    clock: Clock,
    role: Role,
    name: string,
    changes: { readonly model?: ModelCard; readonly load?: Partial<Load> } = {},
  ) {
    this.#bus = bus;
    this.#clock = clock;
    this.role = role;
    this.workerId = name as WorkerId;
    this.rankId = `${name}-r0` as RankId;
    this.model = changes.model ?? cardOf();
    this.load = loadOf(changes.load);
  }

  join(): this {
    const { rankId } = this;
    const bus = this.#bus;
    this.#open = [
      bus.respond(subjects.cancel(rankId), Cancel, CancelReply, (m) => this.#turn(() => this.#cancel(m))),
      bus.respond(subjects.kvMissed(rankId), KvMissed, KvMissedReply, (m) => this.onMissed(m) ?? this.#snapshot()),
      this.#clock.every(HEARTBEAT_MS, () => {
        if (this.#frozen === null) this.beat();
      }),
      ...(this.role === "prefill"
        ? [
            bus.respond(subjects.prefill(rankId), PrefillWork, PrefillReplySchema, (m) =>
              this.#turn(() => this.#prefill(m)),
            ),
            bus.respond(subjects.target(rankId), PrefillTarget, TargetReplySchema, (m) =>
              this.#turn(() => {
                this.seen.push({ kind: m.kind, head: m.head });
                return this.onTarget(m) ?? { kind: "done" as const };
              }),
            ),
          ]
        : [
            bus.respond(subjects.reserve(rankId), ReserveKv, ReserveReplySchema, (m) =>
              this.#turn(async () => {
                const answer = await this.#reserve(m);
                await this.late;
                return answer;
              }),
            ),
            bus.respond(subjects.start(rankId), StartDecode, StartReplySchema, (m) => this.#turn(() => this.#start(m))),
            bus.respond(subjects.resume(rankId), ResumeStream, ResumeReply, (m) => this.#turn(() => this.onResume(m))),
            bus.subscribe(subjects.acks(rankId), TokenAcks, ({ acks }) => {
              for (const ack of acks) this.acked.set(ack.requestId, ack.seq);
            }),
          ]),
    ];
    this.beat();
    return this;
  }

  beat(): void {
    this.#bus.publish(subjects.beat(this.rankId), Heartbeat, {
      kind: "heartbeat",
      workerId: this.workerId,
      rankId: this.rankId,
      rank: 0,
      ranks: 1,
      role: this.role,
      state: this.state,
      epoch: this.epoch,
      clockMs: this.#clock.now() + this.clockAheadMs,
      seq: this.#beats++,
      model: this.model,
      kvEndpoint: this.role === "decode" ? { host: "127.0.0.1", port: 7000, hostKey: "host" } : null,
      ...{ exchange: null, experts: 0, membership: null, lostGroup: null },
      kvSeq: this.kvSeq,
      healthUrl: "http://127.0.0.1:1",
      pid: 1,
      load: this.load,
    });
  }

  kvEvents(seq: number, stored: readonly string[], removed: readonly string[] = []): void {
    const { rankId, epoch } = this;
    this.kvSeq = seq;
    const events = {
      kind: "kv-events",
      rankId,
      epoch,
      seq,
      stored: bytesOf(stored),
      removed: bytesOf(removed),
    } as const;
    this.#bus.publish(subjects.kvEvents(rankId), KvEvents, events);
  }

  #snapshot(): KvMissedReply {
    this.snapshots++;
    if (this.cached === null) throw new Error("scripted");
    const { rankId, epoch, kvSeq: seq } = this;
    return { kind: "kv-snapshot", rankId, epoch, seq, hashes: bytesOf(this.cached) };
  }

  /** As SIGSTOP does: nothing is heard or said, everything that comes waits. */
  freeze(): void {
    this.#frozen = [];
  }

  thaw(): void {
    const waiting = this.#frozen ?? [];
    this.#frozen = null;
    for (const go of waiting) go();
    this.beat();
  }

  /** As SIGKILL does. */
  kill(): void {
    for (const one of this.#open) "cancel" in one ? one.cancel() : one.unsubscribe();
    this.#open = [];
    for (const held of this.held.values()) held.timer?.cancel();
    this.held.clear();
  }

  leave(): void {
    this.#bus.publish(subjects.beat(this.rankId), Goodbye, { kind: "goodbye", rankId: this.rankId, epoch: this.epoch });
    this.kill();
  }

  /** Ends every running request with an error, as a rank at the end of its drain does. */
  giveUp(code: NonNullable<DecodeDone["error"]>): void {
    for (const held of [...this.held.values()]) {
      held.timer?.cancel();
      held.done = { ...this.#doneOf(held), finish: null, error: code };
      this.#publish(held, held.base + held.tokens.length, []);
      this.held.delete(held.head.requestId);
    }
  }

  prefillFailed(code: PrefillFailed["code"]): void {
    for (const held of [...this.held.values()]) {
      held.timer?.cancel();
      this.held.delete(held.head.requestId);
      this.#bus.publish(subjects.prefillOutcome(held.head.owner), PrefillFailed, {
        kind: "prefill-failed",
        head: held.head,
        rankId: this.rankId,
        epoch: this.epoch,
        code,
        detail: "scripted",
      });
    }
  }

  count(kind: string): number {
    return this.seen.filter((message) => message.kind === kind).length;
  }

  #turn<T>(work: () => T | Promise<T>): T | Promise<T> {
    if (this.#frozen === null) return work();
    return new Promise((resolve) => this.#frozen!.push(() => resolve(work())));
  }

  #reserve(query: ReserveKv): ReserveReply | Promise<ReserveReply> {
    this.seen.push({ kind: query.kind, head: query.head });
    const decided = this.onReserve(query);
    if (decided !== null) return decided;
    this.#hold(query.head, query.generation);
    return {
      kind: "reserved",
      reservation: {
        rankId: this.rankId,
        epoch: this.epoch,
        handle: { slot: this.held.size, generation: this.seen.length },
        endpoint: { host: "127.0.0.1", port: 7000, hostKey: "host" },
        cachedTokens: 0,
        deadlineMs: query.deadlineMs,
      },
    };
  }

  #prefill(work: PrefillWork): PrefillReply | Promise<PrefillReply> {
    this.seen.push({ kind: work.kind, head: work.head });
    const decided = this.onPrefill(work);
    if (decided !== null) return decided;
    const held = this.#hold(work.head, work.generation);
    held.timer = this.#clock.after(PREFILL_MS, () => {
      void this.#turn(() => {
        if (this.finishes && this.held.get(work.head.requestId) === held) this.#finishPrefill(held);
      });
    });
    return { kind: "prefill-accepted", cachedTokens: 0 };
  }

  #finishPrefill(held: Held): void {
    this.held.delete(held.head.requestId);
    const ended =
      held.base + 1 >= this.stopAt ? "stop" : held.base + 1 >= held.generation.maxNewTokens ? "length" : null;
    this.#bus.publish(subjects.prefillOutcome(held.head.owner), PrefillDone, {
      kind: "prefill-done",
      head: held.head,
      rankId: this.rankId,
      epoch: this.epoch,
      firstToken: tokenAt(held.base),
      logprobs: null,
      finish: ended,
      cachedTokens: 0,
      queueMs: 1,
      ...{ computeMs: PREFILL_MS, gpuMs: PREFILL_MS },
    });
  }

  #start(message: StartDecode): StartReply | Promise<StartReply> {
    this.seen.push({ kind: message.kind, head: message.head });
    const decided = this.onStart(message);
    if (decided !== null) return decided;
    const held = this.held.get(message.head.requestId);
    if (held === undefined || held.head.attempt !== message.head.attempt) return refusal("unknown_request");
    if (message.firstToken !== null) held.base++;
    const step = () => {
      void this.#turn(() => this.#step(held));
    };
    held.timer = this.#clock.every(STEP_MS, step);
    return { kind: "started", pages: 4, bytes: 4096, transferMs: 2 };
  }

  #step(held: Held): void {
    if (!this.steps || this.held.get(held.head.requestId) !== held || held.done !== null) return;
    const seq = held.base + held.tokens.length;
    const made = seq + 1;
    held.tokens.push(tokenAt(seq));
    if (made >= this.stopAt || made >= held.generation.maxNewTokens) {
      held.done = { ...this.#doneOf(held), finish: made >= this.stopAt ? "stop" : "length" };
      held.timer?.cancel();
      this.held.delete(held.head.requestId);
    }
    this.#publish(held, seq, [tokenAt(seq)]);
  }

  #resume(message: ResumeStream): ResumeReply {
    this.seen.push({ kind: message.kind, head: message.head });
    const held = this.held.get(message.head.requestId) ?? this.#ended.get(message.head.requestId);
    if (held === undefined || held.head.attempt !== message.head.attempt) return refusal("unknown_request");
    const tokens = Int32Array.from(held.tokens.slice(Math.max(0, message.seq - held.base)));
    const { requestId, attempt } = message.head;
    const chunk = { requestId, attempt, seq: message.seq, tokens, logprobs: null, done: held.done };
    return { kind: "resumed", chunk };
  }

  #cancel(message: Cancel): CancelReply | Promise<CancelReply> {
    this.seen.push({ kind: message.kind, head: message.head });
    const decided = this.onCancel(message);
    if (decided !== null) return decided;
    const held = this.held.get(message.head.requestId);
    if (held === undefined || held.head.attempt > message.head.attempt)
      return { kind: "cancelled", known: false, gpuMs: 0 };
    held.timer?.cancel();
    this.held.delete(message.head.requestId);
    return { kind: "cancelled", known: true, gpuMs: 0 };
  }

  /** Ended requests whose tokens may still be asked for. */
  readonly #ended = new Map<RequestId, Held>();

  #hold(head: RequestHead, generation: Generation): Held {
    const base = generation.tokens.length - generation.promptLength;
    const held: Held = { head, generation, tokens: [], base, timer: null, done: null };
    this.held.get(head.requestId)?.timer?.cancel();
    this.held.set(head.requestId, held);
    return held;
  }

  #doneOf(held: Held): DecodeDone {
    const decodeMs = held.tokens.length * STEP_MS;
    return {
      finish: null,
      error: null,
      cachedTokens: 0,
      computedTokens: 0,
      ...{ verifiedDrafts: 0, acceptedDrafts: 0 },
      ...{ decodeMs, gpuMs: decodeMs },
    };
  }

  #publish(held: Held, seq: number, tokens: readonly number[]): void {
    if (held.done !== null) this.#ended.set(held.head.requestId, held);
    const { requestId, attempt, owner } = held.head;
    const batch: TokenBatch = {
      kind: "token-batch",
      rankId: this.rankId,
      epoch: this.epoch,
      chunks: [{ requestId, attempt, seq, tokens: Int32Array.from(tokens), logprobs: null, done: held.done }],
    };
    for (const one of this.tamper(batch)) this.#bus.publish(subjects.tokens(owner), TokenBatch, one);
  }
}

function bytesOf(hashes: readonly string[]): Uint8Array {
  return new Uint8Array(Buffer.from(hashes.join(""), "latin1"));
}
