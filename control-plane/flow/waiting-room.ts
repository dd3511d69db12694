import { MargayError } from "#protocol/errors.ts";
import type { ModelName } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import type { Clock, Timer } from "#service/clock.ts";
import type { Metrics } from "#service/metrics.ts";
import type { Rank } from "../fleet/fleet.ts";
import type { FleetWatch } from "../fleet/fleet-watch.ts";
import { type Placement, type PlacementQuery, place } from "../placement/place.ts";
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

interface Guest {
  readonly query: PlacementQuery;
  readonly arrivedMs: number;
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
}

/** Who asks for a place. */
export interface Turn {
  /** Monotonic time at which the request first came. */
  readonly arrivedMs: number;
  /** Monotonic time until which it may wait. */
  readonly untilMs: number;
  /** It comes back after a failure: it keeps its turn, and is not turned away for a full queue. */
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
 * Q1 first come, first served within a model: nobody is seated while an earlier request of the model waits
 * Q2 never more than `mostWaiting` new ones per model, none longer than it may, nor than HOPELESS_MS when the model's
 *    workers say why they cannot start
 * Q3 a seat is counted on its ranks from the moment it is given
 */
export class WaitingRoom {
  readonly #parts: WaitingRoomParts;
  readonly #queues = new Map<ModelName, Guest[]>();
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
    return this.#queues.get(model)?.length ?? 0;
  }

  oldestWaitMs(model: ModelName): number {
    const first = this.#queues.get(model)?.[0];
    return first === undefined ? 0 : this.#parts.clock.monotonic() - first.enteredMs;
  }

  /** The role the first waiting request waits for at this moment; null when it waits for none, or nobody waits. */
  missing(model: ModelName): Role | null {
    const guest = this.#queues.get(model)?.[0];
    if (guest === undefined) return null;
    const placement = this.#place(guest);
    return placement.kind === "wait" ? placement.missing : null;
  }

  /**
   * A place for a request, now or when there is one.
   * Rejects with `queue_full`, `capacity_timeout`, `no_worker` or `context_length_exceeded`, or with the interruption's reason.
   */
  async enter(query: PlacementQuery, { arrivedMs, untilMs, again }: Turn, interruption: Interruption): Promise<Seat> {
    const { clock, metrics, mostWaiting } = this.#parts;
    if (this.#closed) throw new MargayError("shutting_down");
    const queue = this.#queues.get(query.model) ?? [];
    this.#queues.set(query.model, queue);
    if (queue.length + this.#parts.waitingElsewhere(query.model) >= mostWaiting && !again) {
      throw new MargayError("queue_full", undefined, { retryAfterMs: this.#parts.waitMs / 4 });
    }
    const seated = Promise.withResolvers<Seat>();
    const guest: Guest = {
      query,
      arrivedMs,
      untilMs,
      enteredMs: clock.monotonic(),
      resolve: seated.resolve,
      reject: seated.reject,
    };
    const at = queue.findIndex((other) => other.arrivedMs > arrivedMs);
    queue.splice(at === -1 ? queue.length : at, 0, guest);
    this.#seatAll();
    if (queue.includes(guest)) this.#parts.onArrival();
    try {
      return await interruption.race(seated.promise);
    } catch (error) {
      // Seated and interrupted in the same moment: the seat goes back.
      void seated.promise.then(leave, () => {});
      throw error;
    } finally {
      const left = queue.indexOf(guest);
      if (left !== -1) queue.splice(left, 1);
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
      for (const guest of queue.splice(0)) guest.reject(new MargayError("shutting_down"));
    }
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
        while (queue.length > 0 && this.#seatFirst(queue));
        this.#dismiss(model, queue);
        waiting += queue.length;
      }
    } finally {
      this.#seating = false;
    }
    if (waiting === 0) {
      this.#timer?.cancel();
      this.#timer = null;
    } else this.#timer ??= this.#parts.clock.every(LOOK_MS, () => this.#seatAll());
  }

  /** Seats or refuses the first of a queue; false when it has to wait. */
  #seatFirst(queue: Guest[]): boolean {
    const guest = queue[0]!;
    const placement = this.#place(guest);
    switch (placement.kind) {
      case "wait":
        return false;
      case "impossible":
        guest.reject(
          new MargayError(
            "context_length_exceeded",
            `The request needs ${placement.blocks} blocks of KV memory and the largest worker has ${placement.blocksTotal}.`,
          ),
        );
        break;
      default:
        guest.resolve(this.#seat(placement, guest.query));
    }
    queue.shift();
    return true;
  }

  #place({ query }: Guest): Placement {
    const { fleet, clock } = this.#parts;
    return place(fleet.snapshot, fleet.prefixes, query, clock.monotonic());
  }

  /** Those that waited too long: not always the first, for one that came back stands before them. */
  #dismiss(model: ModelName, queue: Guest[]): void {
    if (queue.length === 0) return;
    const nowMs = this.#parts.clock.monotonic();
    const why = this.#parts.whyNone(model);
    const hopeless = why !== null && !why.mayPass;
    const limitMs = ({ enteredMs, untilMs }: Guest): number =>
      Math.min(untilMs - enteredMs, hopeless ? HOPELESS_MS : Number.POSITIVE_INFINITY);
    for (const guest of queue.filter((one) => one.enteredMs + limitMs(one) <= nowMs)) {
      queue.splice(queue.indexOf(guest), 1);
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
