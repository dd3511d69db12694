import type { ServedShare } from "#protocol/demand.ts";
import { MargayError } from "#protocol/errors.ts";
import type { ModelName } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import type { Clock, Timer } from "#service/clock.ts";
import type { Metrics } from "#service/metrics.ts";
import type { Rank } from "../fleet/fleet.ts";
import type { FleetWatch } from "../fleet/fleet-watch.ts";
import { type Placement, type PlacementQuery, place } from "../placement/place.ts";
import { FairQueue, type Queued, type Share } from "./fair-queue.ts";
import type { Interruption } from "./interruption.ts";

/** A placement that counts on its ranks until it is given back. */
export interface Seat {
  readonly prefill: Rank | null;
  readonly decode: Rank;
  /** The prompt is computed (or never will be): the prefill rank is free for others. Idempotent. */
  leavePrefill(): void;
  /** Idempotent. */
  leaveDecode(): void;
}

interface Guest extends Queued {
  readonly query: PlacementQuery;
  readonly enteredMs: number;
  readonly untilMs: number;
  readonly resolve: (seat: Seat) => void;
  readonly reject: (error: MargayError) => void;
}

export interface WaitingRoomParts {
  readonly fleet: FleetWatch;
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly mostWaiting: number;
  /** Longest wait of any request, for the time to come back that the next one is told. */
  readonly waitMs: number;
  /** Why a model's workers do not come, if somebody knows, and whether that may pass by itself. */
  readonly whyNone: (model: ModelName) => { readonly sentence: string; readonly mayPass: boolean } | null;
  /** Requests of the model that wait at other control planes: the limit holds for all together. */
  readonly waitingElsewhere: (model: ModelName) => number;
  /** A request came that has to wait: whoever makes workers may look at once. */
  readonly onArrival: () => void;
  /** The last request of a model that had to wait does not any more. */
  readonly onEmpty: () => void;
}

/** Who asks for a place. */
export interface Turn {
  readonly share: Share;
  /** Monotonic time at which the request first came. */
  readonly arrivedMs: number;
  /** Monotonic time until which it may wait. */
  readonly untilMs: number;
  /** It comes back after a failure: it goes before those that had no place yet, and is not turned away for a full queue. */
  readonly again: boolean;
}

/** Cooling ranks open again without a message: looked at this often while somebody waits. */
const LOOK_MS = 50;
/** Heartbeats of a large fleet come by the thousand: changes within this time are looked at together. */
const TOGETHER_MS = 2;
const RETRY_AFTER_MS = 5_000;
/** Workers that say why they cannot start are tried again and again, but nobody is kept waiting for them for long. */
const HOPELESS_MS = 10_000;

/**
 * Owns the requests that have no place yet, per model.
 *
 *   entered -> (waiting) -> seated | refused | left
 *
 * Q1 within a model the requests of tenants take turns (fair-queue.ts): nobody is seated before the one whose turn it is
 * Q2 a full queue turns away whoever's tenant holds most of it: one that floods it cannot keep others out
 * Q3 never more than `mostWaiting` new ones per model, none longer than it may, nor than HOPELESS_MS when the model's
 *    workers say why they cannot start
 * Q4 a seat is counted on its ranks from the moment it is given
 */
export class WaitingRoom {
  readonly #parts: WaitingRoomParts;
  readonly #queues = new Map<ModelName, FairQueue<Guest>>();
  readonly #stopListening: () => void;
  #timer: Timer | null = null;
  #soon: Timer | null = null;
  #lookedMs = 0;
  #seating = false;
  #closed = false;

  constructor(parts: WaitingRoomParts) {
    this.#parts = parts;
    this.#stopListening = parts.fleet.onChange(() => this.#onChange());
  }

  waiting(model: ModelName): number {
    return this.#queues.get(model)?.size ?? 0;
  }

  /** Prompt tokens of those that wait. */
  waitingTokens(model: ModelName): number {
    let tokens = 0;
    for (const { promptTokens } of this.#queue(model)) tokens += promptTokens;
    return tokens;
  }

  oldestWaitMs(model: ModelName): number {
    const nowMs = this.#parts.clock.monotonic();
    let oldestMs = nowMs;
    for (const { enteredMs } of this.#queue(model).heads()) oldestMs = Math.min(oldestMs, enteredMs);
    return nowMs - oldestMs;
  }

  /** Tells of tokens that a tenant was served: its later requests wait for those that were served less. */
  charge(model: ModelName, share: Share, tokens: number): void {
    this.#queue(model).charge(share, tokens);
  }

  /** What was served here, for the other control planes. */
  served(model: ModelName): ServedShare[] {
    return this.#queue(model).servedHere;
  }

  /** Another control plane served a tenant. */
  chargeElsewhere(model: ModelName, share: ServedShare): void {
    this.#queue(model).chargeElsewhere(share);
  }

  /** The role the first waiting request waits for at this moment; null when it waits for none, or nobody waits. */
  missing(model: ModelName): Role | null {
    const guest = this.#queue(model).next(this.#parts.clock.monotonic());
    if (guest === null) return null;
    const placement = this.#place(guest);
    return placement.kind === "wait" ? placement.missing : null;
  }

  /**
   * A place for a request, now or when there is one.
   * Rejects with `queue_full`, `capacity_timeout`, `no_worker` or `context_length_exceeded`, or with the interruption's reason.
   */
  async enter(query: PlacementQuery, turn: Turn, interruption: Interruption): Promise<Seat> {
    const { clock, metrics } = this.#parts;
    if (this.#closed) throw new MargayError("shutting_down");
    const queue = this.#queue(query.model);
    if (!turn.again) this.#makeRoom(query.model, queue, turn.share);
    const seated = Promise.withResolvers<Seat>();
    const guest: Guest = {
      ...turn,
      query,
      promptTokens: query.promptTokens,
      enteredMs: clock.monotonic(),
      resolve: seated.resolve,
      reject: seated.reject,
    };
    queue.push(guest);
    this.#seatAll();
    const waits = queue.has(guest);
    if (waits) this.#parts.onArrival();
    try {
      return await interruption.race(seated.promise);
    } catch (error) {
      // Seated and interrupted in the same moment: the seat goes back.
      void seated.promise.then(leave, () => {});
      throw error;
    } finally {
      queue.remove(guest);
      if (waits && queue.size === 0) this.#parts.onEmpty();
      metrics.observe("margay_queue_seconds", { model: query.model }, (clock.monotonic() - guest.enteredMs) / 1000);
    }
  }

  close(): void {
    this.#closed = true;
    this.#stopListening();
    this.#timer?.cancel();
    this.#timer = null;
    this.#soon?.cancel();
    this.#soon = null;
    for (const queue of this.#queues.values()) {
      for (const guest of [...queue]) {
        queue.remove(guest);
        guest.reject(new MargayError("shutting_down"));
      }
    }
  }

  #queue(model: ModelName): FairQueue<Guest> {
    let queue = this.#queues.get(model);
    if (queue === undefined) {
      queue = new FairQueue();
      this.#queues.set(model, queue);
    }
    return queue;
  }

  /** Throws `queue_full` where a newcomer would be one too many, unless somebody's last request has to go before it. */
  #makeRoom(model: ModelName, queue: FairQueue<Guest>, newcomer: Share): void {
    const { mostWaiting, waitingElsewhere, waitMs } = this.#parts;
    if (queue.size + waitingElsewhere(model) < mostWaiting) return;
    const full = new MargayError("queue_full", undefined, { retryAfterMs: waitMs / 4 });
    const victim = queue.crowdedOut(newcomer);
    if (victim === null) throw full;
    queue.remove(victim);
    victim.reject(full);
  }

  #onChange(): void {
    if (this.#timer === null || this.#seating || this.#soon !== null) return;
    const restMs = this.#lookedMs + TOGETHER_MS - this.#parts.clock.monotonic();
    if (restMs <= 0) this.#seatAll();
    else
      this.#soon = this.#parts.clock.after(restMs, () => {
        this.#soon = null;
        this.#seatAll();
      });
  }

  #seatAll(): void {
    // Giving a seat changes the fleet, which calls this again.
    if (this.#seating) return;
    this.#seating = true;
    this.#lookedMs = this.#parts.clock.monotonic();
    let waiting = 0;
    try {
      for (const [model, queue] of this.#queues) {
        while (this.#seatNext(queue));
        this.#dismiss(model, queue);
        waiting += queue.size;
      }
    } finally {
      this.#seating = false;
    }
    if (waiting === 0) {
      this.#timer?.cancel();
      this.#timer = null;
    } else this.#timer ??= this.#parts.clock.every(LOOK_MS, () => this.#seatAll());
  }

  /** Seats or refuses the one whose turn it is; false when that has to wait, or nobody does. */
  #seatNext(queue: FairQueue<Guest>): boolean {
    const guest = queue.next(this.#lookedMs);
    if (guest === null) return false;
    const placement = this.#place(guest);
    switch (placement.kind) {
      case "wait":
        return false;
      case "impossible":
        queue.remove(guest);
        guest.reject(
          new MargayError(
            "context_length_exceeded",
            `The request needs ${placement.blocks} blocks of KV memory and the largest worker has ${placement.blocksTotal}.`,
          ),
        );
        break;
      default:
        queue.take(guest);
        guest.resolve(this.#seat(placement, guest.query));
    }
    return true;
  }

  #place({ query }: Guest): Placement {
    const { fleet, clock } = this.#parts;
    return place(fleet.snapshot, fleet.prefixes, query, clock.monotonic());
  }

  /** Those that waited too long. */
  #dismiss(model: ModelName, queue: FairQueue<Guest>): void {
    if (queue.size === 0) return;
    const nowMs = this.#parts.clock.monotonic();
    const why = this.#parts.whyNone(model);
    const hopeless = why !== null && !why.mayPass;
    const limitMs = ({ enteredMs, untilMs }: Guest): number =>
      Math.min(untilMs - enteredMs, hopeless ? HOPELESS_MS : Number.POSITIVE_INFINITY);
    for (const guest of [...queue].filter((one) => one.enteredMs + limitMs(one) <= nowMs)) {
      queue.remove(guest);
      const seconds = Number((limitMs(guest) / 1000).toFixed(1));
      const text = `No worker became available within ${seconds} seconds.${why === null ? "" : ` ${why.sentence}`}`;
      guest.reject(
        new MargayError(hopeless ? "no_worker" : "capacity_timeout", text, { retryAfterMs: RETRY_AFTER_MS }),
      );
    }
  }

  #seat(placement: Extract<Placement, { kind: "split" | "local" }>, query: PlacementQuery): Seat {
    const { fleet } = this.#parts;
    const prefill = placement.kind === "split" ? placement.prefill : null;
    const leaveDecode = fleet.occupy(placement.decode, 0);
    const leavePrefill = prefill === null ? () => {} : fleet.occupy(prefill, query.promptTokens);
    if (prefill !== null) fleet.pairTried(prefill.rankId, placement.decode.rankId);
    return { prefill, decode: placement.decode, leavePrefill, leaveDecode };
  }
}

/** Gives a whole seat back. */
export function leave(seat: Seat): void {
  seat.leavePrefill();
  seat.leaveDecode();
}
