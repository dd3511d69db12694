import { z } from "zod";
import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import { asMargayError } from "#protocol/errors.ts";
import type { GatewayId, RankId } from "#protocol/ids.ts";
import { KvEvents, KvMissed, KvMissedReply } from "#protocol/kv.ts";
import { CONTROL_PLANE_QUEUE, subjects } from "#protocol/subjects.ts";
import {
  GATEWAY_BEAT_MS,
  GatewayBeat,
  Goodbye,
  Heartbeat,
  Hello,
  MAX_CLOCK_SKEW_MS,
  Refused,
  Welcome,
} from "#protocol/worker.ts";
import type { Clock, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import {
  EMPTY_FLEET,
  type FleetSnapshot,
  FORGET_MS,
  PAIR_COOL_MS,
  pairKey,
  type Rank,
  SKEWED_BEATS,
  withCooling,
  withGoodbye,
  withHeartbeat,
  withOwn,
  withoutRank,
  withPair,
  withSilenceExcused,
  withTime,
} from "./fleet.ts";
import { PrefixIndex } from "./prefix-index.ts";
import { judgeHello, lacksPartner } from "./registration.ts";

const TICK_MS = 250;
/** A tick this late means that this process stood still, and heard nobody. */
const STALL_MS = 1_000;
const MISSED_MS = 2_000;
/** A rank that lacks a partner asks again so soon, and is forgotten when it has not asked for so long. */
const PARTNER_RETRY_MS = 1_000;
const NEWCOMER_MS = 10_000;
const BeatMessage = z.discriminatedUnion("kind", [Heartbeat, Goodbye]);
const HelloReply = z.discriminatedUnion("kind", [Welcome, Refused]);

/** A rank was lost, left, or came back under another epoch: what it held of `epoch` is gone or out of reach. */
export type LostListener = (rankId: RankId, epoch: number) => void;

export interface FleetWatchParts {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly gatewayId: GatewayId;
}

/**
 * Owns the current snapshot of the fleet and the index of its prefix caches; follows heartbeats and KV events, gives
 * epochs to ranks that say hello, and tells ranks that this control plane lives.
 *
 *   created -> started -> stopped
 *
 * W1 listeners of a loss hear it once per rank and epoch, before those of the change that caused it
 * W2 nobody is lost for a silence while the bus was away or this process stood still
 * W3 nothing is kept of ranks that are not in the snapshot
 */
export class FleetWatch {
  readonly prefixes = new PrefixIndex();
  #snapshot: FleetSnapshot = EMPTY_FLEET;
  readonly #parts: FleetWatchParts;
  readonly #changed = new Set<() => void>();
  readonly #lost = new Set<LostListener>();
  /** Ranks whose process is known to have ended, and the last epoch it had: what it sent before may still arrive. */
  readonly #ended = new Map<RankId, { readonly epoch: number; readonly ms: number }>();
  readonly #fetching = new Set<RankId>();
  /** Ranks that were put off for lack of a partner, and when they last asked. */
  readonly #newcomers = new Map<RankId, { readonly hello: Hello; readonly ms: number }>();
  #open: (Subscription | Timer)[] = [];
  #lastTickMs = 0;

  constructor(parts: FleetWatchParts) {
    this.#parts = parts;
  }

  get snapshot(): FleetSnapshot {
    return this.#snapshot;
  }

  start(): void {
    const { bus, clock, gatewayId } = this.#parts;
    const beat = (): void =>
      bus.publish(subjects.gatewayBeat(gatewayId), GatewayBeat, {
        kind: "gateway-beat",
        gatewayId,
        clockMs: clock.now(),
      });
    this.#lastTickMs = clock.monotonic();
    this.#open = [
      bus.subscribe(subjects.beats(), BeatMessage, (message) => this.#onBeat(message)),
      bus.subscribe(subjects.allKvEvents(), KvEvents, (events) => {
        if (this.#snapshot.ranks.get(events.rankId)?.epoch !== events.epoch) return;
        if (!this.prefixes.follow(events)) void this.#fetch(events.rankId);
      }),
      bus.respond(subjects.hello(), Hello, HelloReply, (hello) => this.#welcome(hello), CONTROL_PLANE_QUEUE),
      bus.onState((state) => {
        if (state === "connected") this.#excuse();
      }),
      clock.every(TICK_MS, () => this.#tick()),
      clock.every(GATEWAY_BEAT_MS, beat),
    ];
    beat();
  }

  stop(): void {
    for (const one of this.#open) "cancel" in one ? one.cancel() : one.unsubscribe();
    this.#open = [];
  }

  /** Called after every change. Returns how to stop it. */
  onChange(listener: () => void): () => void {
    this.#changed.add(listener);
    return () => this.#changed.delete(listener);
  }

  onLost(listener: LostListener): () => void {
    this.#lost.add(listener);
    return () => this.#lost.delete(listener);
  }

  /** The process of a rank has ended, as whoever started it knows: nobody needs to wait for its silence. */
  rankEnded(rankId: RankId): void {
    const known = this.#snapshot.ranks.get(rankId);
    if (known !== undefined) this.#ended.set(rankId, { epoch: known.epoch, ms: this.#parts.clock.monotonic() });
    this.#move(withoutRank(this.#snapshot, rankId));
  }

  /** True while `rankId` may come back under `epoch`, even if it is lost now. */
  isKnown(rankId: RankId, epoch: number): boolean {
    return this.#snapshot.ranks.get(rankId)?.epoch === epoch;
  }

  /** True while `rankId` lives under `epoch`. */
  isAlive(rankId: RankId, epoch: number): boolean {
    const rank = this.#snapshot.ranks.get(rankId);
    return rank !== undefined && rank.epoch === epoch && rank.state !== "lost";
  }

  /** Counts a request of ours on a rank until the returned function is called. */
  occupy(rank: Rank, prefillTokens: number): () => void {
    this.#move(withOwn(this.#snapshot, rank.rankId, rank.epoch, 1, prefillTokens), rank.rankId);
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      this.#move(withOwn(this.#snapshot, rank.rankId, rank.epoch, -1, -prefillTokens), rank.rankId);
    };
  }

  cool(rankId: RankId, ms: number): void {
    this.#move(withCooling(this.#snapshot, rankId, this.#parts.clock.monotonic() + ms), rankId);
  }

  pairFailed(prefill: RankId, decode: RankId, ms: number): void {
    this.#move(withPair(this.#snapshot, prefill, decode, this.#parts.clock.monotonic() + ms));
  }

  /** A request is about to use this way: one that failed before is left to it alone for a while. */
  pairTried(prefill: RankId, decode: RankId): void {
    if (this.#snapshot.pairs.has(pairKey(prefill, decode))) this.pairFailed(prefill, decode, PAIR_COOL_MS);
  }

  pairWorked(prefill: RankId, decode: RankId): void {
    this.#move(withPair(this.#snapshot, prefill, decode, null));
  }

  #onBeat(message: z.output<typeof BeatMessage>): void {
    if (message.kind === "goodbye") {
      this.#move(withGoodbye(this.#snapshot, message));
      return;
    }
    if (message.epoch <= (this.#ended.get(message.rankId)?.epoch ?? 0)) return;
    const { clock, logger } = this.#parts;
    // Of one of several ranks a heartbeat may say what has become of another.
    const only = message.ranks === 1 ? message.rankId : null;
    this.#move(withHeartbeat(this.#snapshot, message, clock.monotonic(), clock.now()), only);
    const rank = this.#snapshot.ranks.get(message.rankId);
    if (rank?.epoch !== message.epoch) return;
    if (rank.skewedBeats === SKEWED_BEATS) {
      const aheadMs = Math.round(message.clockMs - clock.now());
      logger.warn({ rank: rank.rankId, aheadMs }, "a rank gets no work: its clock is off");
    }
    if (!this.prefixes.isCurrent(message.rankId, message.epoch, message.kvSeq)) void this.#fetch(message.rankId);
  }

  async #welcome(hello: Hello): Promise<z.input<typeof HelloReply>> {
    const { bus, clock, gatewayId, logger } = this.#parts;
    const skewMs = Math.abs(hello.clockMs - clock.now());
    if (skewMs > MAX_CLOCK_SKEW_MS) {
      const detail = `the clock of ${hello.rankId} is ${Math.round(skewMs)} ms off; at most ${MAX_CLOCK_SKEW_MS} ms is allowed`;
      logger.warn({ rank: hello.rankId }, detail);
      return { kind: "refused", code: "incompatible", detail, retryAfterMs: null };
    }
    const mismatch = judgeHello(this.#snapshot, hello);
    if (mismatch !== null) {
      logger.warn({ rank: hello.rankId }, mismatch);
      return { kind: "refused", code: "incompatible", detail: mismatch, retryAfterMs: null };
    }
    const nowMs = clock.monotonic();
    for (const [rankId, { ms }] of this.#newcomers) if (nowMs - ms > NEWCOMER_MS) this.#newcomers.delete(rankId);
    const alone = lacksPartner(
      this.#snapshot,
      hello,
      [...this.#newcomers.values()].map((one) => one.hello),
    );
    if (alone !== null) {
      this.#newcomers.set(hello.rankId, { hello, ms: nowMs });
      return { kind: "refused", code: "incompatible", detail: alone, retryAfterMs: PARTNER_RETRY_MS };
    }
    const epoch = await bus.nextEpoch(hello.rankId);
    logger.info({ rank: hello.rankId, role: hello.role, epoch }, "a rank joined");
    return { kind: "welcome", epoch, gatewayId };
  }

  /** Learns what was missed of a rank's KV events; one question at a time per rank, repeated by later events if it fails. */
  async #fetch(rankId: RankId): Promise<void> {
    const epoch = this.#snapshot.ranks.get(rankId)?.epoch;
    if (epoch === undefined || this.#fetching.has(rankId)) return;
    this.#fetching.add(rankId);
    try {
      const missed = { kind: "kv-missed", epoch, seq: this.prefixes.lastSeq(rankId, epoch) } as const;
      const subject = subjects.kvMissed(rankId);
      const reply = await this.#parts.bus.request(subject, KvMissed, missed, KvMissedReply, MISSED_MS);
      // The rank may have left, or begun anew, while it answered.
      if (this.#snapshot.ranks.get(rankId)?.epoch !== reply.epoch) return;
      if (reply.kind === "kv-replay") this.prefixes.replay(reply);
      else this.prefixes.restore(reply);
    } catch (thrown) {
      this.#parts.logger.debug({ rank: rankId, code: asMargayError(thrown).code }, "missed KV events were not told");
    } finally {
      this.#fetching.delete(rankId);
    }
  }

  #tick(): void {
    const { bus, clock } = this.#parts;
    const nowMs = clock.monotonic();
    const stalled = nowMs - this.#lastTickMs > TICK_MS + STALL_MS;
    this.#lastTickMs = nowMs;
    if (stalled || bus.state !== "connected") this.#excuse();
    this.#move(withTime(this.#snapshot, nowMs));
    for (const [rankId, { ms }] of this.#ended) if (nowMs - ms > FORGET_MS) this.#ended.delete(rankId);
  }

  #excuse(): void {
    this.#snapshot = withSilenceExcused(this.#snapshot, this.#parts.clock.monotonic());
  }

  /** `only`: the one rank that may differ; without it all are compared. */
  #move(next: FleetSnapshot, only: RankId | null = null): void {
    const before = this.#snapshot;
    if (next === before) return;
    this.#snapshot = next;
    if (only === null) for (const rank of before.ranks.values()) this.#tellEnd(rank);
    else {
      const rank = before.ranks.get(only);
      if (rank !== undefined) this.#tellEnd(rank);
    }
    for (const listener of [...this.#changed]) listener();
  }

  /** Tells of a rank's end if it has ended since it looked like this. */
  #tellEnd(rank: Rank): void {
    const now = this.#snapshot.ranks.get(rank.rankId);
    const left = now === undefined || now.epoch !== rank.epoch;
    if (left) this.prefixes.forget(rank.rankId);
    if (rank.state === "lost" || !(left || now.state === "lost")) return;
    if (left) this.#parts.logger.info({ rank: rank.rankId, epoch: rank.epoch }, "a rank left");
    else this.#parts.logger.warn({ rank: rank.rankId, epoch: rank.epoch }, "a rank is lost");
    for (const listener of [...this.#lost]) listener(rank.rankId, rank.epoch);
  }
}
