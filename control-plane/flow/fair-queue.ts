import { MOST_SERVED, type ServedShare } from "#protocol/demand.ts";

/** Whose request it is, for its turn among those that wait. */
export interface Share {
  readonly tenant: string;
  /** What the tenant gets of a busy system, against the weights of others. */
  readonly weight: number;
  /** 1: before others, 0, -1: after them, or IDLE_URGENCY. */
  readonly urgency: number;
}

export interface Queued {
  readonly share: Share;
  /** Monotonic time at which the request first came. */
  readonly arrivedMs: number;
  /** Tokens of its prompt: what its seat costs its tenant at once. */
  readonly promptTokens: number;
  /** It was served before and lost its place: it goes before all that never had one. */
  readonly again: boolean;
}

interface Lane<Q> {
  weight: number;
  /** Tokens served by all control planes, over the weight; only differences between lanes matter. */
  served: number;
  /** Of these, by this one. */
  servedHere: number;
  /** In the order of arrival, by urgency. */
  readonly waiting: Map<number, Q[]>;
  size: number;
}

/** A class goes before the next lower one's requests that came at most so much earlier; so none waits for ever. */
export const HEAD_START_MS = 10_000;
/** Of those that come back: before every class. */
const AGAIN = 2;
/** Of what nobody waits for: after every class, however long it waits. */
export const IDLE_URGENCY = -2;

/**
 * Owns the requests of one model that wait, and how much each tenant was served.
 *
 *   pushed -> taken | removed
 *
 * F1 of a class, the tenant that was served least for its weight is next, and of a tenant's requests the oldest: a virtual
 *    token counter (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024, algorithm 2), with prompt and
 *    output tokens counted alike
 * F2 a tenant that begins to wait counts as served as much as the least served of those that wait: time in which it asked
 *    for nothing is no credit
 * F3 what other control planes served a tenant counts here as well, from when it is heard
 * F4 classes age: the head of a lower one goes first once it came HEAD_START_MS before the head of a higher one
 * F5 the idle class does not age, comes back behind all others as well, and makes room for everybody in a full queue
 */
export class FairQueue<Q extends Queued> {
  readonly #lanes = new Map<string, Lane<Q>>();
  #size = 0;
  /** Of the lane that was taken from last: where a tenant begins when nobody waits. */
  #lastServed = 0;
  #lastCharged: Lane<Q> | null = null;

  get size(): number {
    return this.#size;
  }

  has(one: Q): boolean {
    return this.#lanes.get(one.share.tenant)?.waiting.get(classOf(one))?.includes(one) ?? false;
  }

  /** All that wait, in no order. */
  *[Symbol.iterator](): Generator<Q> {
    for (const { waiting } of this.#lanes.values()) for (const queue of waiting.values()) yield* queue;
  }

  /** The first of every tenant and class: whoever waits longest is among them. */
  *heads(): Generator<Q> {
    for (const { waiting } of this.#lanes.values()) for (const [first] of waiting.values()) if (first) yield first;
  }

  push(one: Q): void {
    const lane = this.#lane(one.share);
    if (lane.size === 0) lane.served = Math.max(lane.served, this.#floor());
    lane.weight = one.share.weight;
    const urgency = classOf(one);
    const queue = lane.waiting.get(urgency) ?? [];
    lane.waiting.set(urgency, queue);
    const at = queue.findLastIndex((other) => other.arrivedMs <= one.arrivedMs);
    queue.splice(at + 1, 0, one);
    lane.size++;
    this.#size++;
  }

  /** Whose turn it is. */
  next(nowMs: number): Q | null {
    let best: Q | null = null;
    let bestMs = Number.NEGATIVE_INFINITY;
    for (const urgency of [AGAIN, 1, 0, -1]) {
      const head = this.#head(urgency);
      if (head === null) continue;
      if (urgency === AGAIN) return head;
      const aheadMs = urgency * HEAD_START_MS + (nowMs - head.arrivedMs);
      if (aheadMs > bestMs) [best, bestMs] = [head, aheadMs];
    }
    return best ?? this.#head(IDLE_URGENCY);
  }

  /** It has its seat: its prompt is charged, unless that was done already. */
  take(one: Q): void {
    if (!this.remove(one)) return;
    const lane = this.#lane(one.share);
    if (!one.again) this.charge(one.share, one.promptTokens);
    this.#lastServed = lane.served;
  }

  /** False: it does not wait here. */
  remove(one: Q): boolean {
    const lane = this.#lanes.get(one.share.tenant);
    const queue = lane?.waiting.get(classOf(one));
    const at = queue?.indexOf(one) ?? -1;
    if (lane === undefined || queue === undefined || at === -1) return false;
    queue.splice(at, 1);
    lane.size--;
    this.#size--;
    return true;
  }

  /** Charges a tenant for tokens it was served. */
  charge(share: Share, tokens: number): void {
    const lane = this.#lane(share);
    lane.served += tokens / share.weight;
    lane.servedHere += tokens / share.weight;
    if (lane === this.#lastCharged) return;
    // The lane charged last is the last one; every token is charged, and moving one in the map is dear.
    this.#lastCharged = lane;
    this.#lanes.delete(share.tenant);
    this.#lanes.set(share.tenant, lane);
  }

  /** Another control plane served a tenant so much more, over its weight. Of no matter where the tenant never asked here. */
  chargeElsewhere({ tenant, served }: ServedShare): void {
    const lane = this.#lanes.get(tenant);
    if (lane !== undefined) lane.served += served;
  }

  /** What this control plane served, of the tenants that were served last. */
  get servedHere(): ServedShare[] {
    const lanes = [...this.#lanes].slice(-MOST_SERVED);
    return lanes.map(([tenant, { servedHere }]) => ({ tenant, served: servedHere }));
  }

  /**
   * Who makes room in a full queue for a newcomer: the last one of the tenant that holds most of it for its weight, if that
   * is more than the newcomer's tenant would. null: the newcomer itself has to go.
   */
  crowdedOut(newcomer: Share): Q | null {
    if (newcomer.urgency === IDLE_URGENCY) return null;
    for (const { waiting } of this.#lanes.values()) {
      const last = waiting.get(IDLE_URGENCY)?.at(-1);
      if (last !== undefined) return last;
    }
    let most = ((this.#lanes.get(newcomer.tenant)?.size ?? 0) + 1) / newcomer.weight;
    let victim: Q | null = null;
    for (const lane of this.#lanes.values()) {
      if (lane.size / lane.weight <= most) continue;
      const last = [-1, 0, 1].map((urgency) => lane.waiting.get(urgency)?.at(-1)).find((one) => one !== undefined);
      if (last !== undefined) [victim, most] = [last, lane.size / lane.weight];
    }
    return victim;
  }

  /** The oldest of a class, of the tenant that was served least among those that wait in it. */
  #head(urgency: number): Q | null {
    let head: Q | null = null;
    let least = Number.POSITIVE_INFINITY;
    for (const { waiting, served } of this.#lanes.values()) {
      const first = waiting.get(urgency)?.[0];
      if (first === undefined) continue;
      // Those that come back have paid already: the oldest first.
      const order = urgency === AGAIN ? first.arrivedMs : served;
      if (order < least || (order === least && head !== null && first.arrivedMs < head.arrivedMs))
        [head, least] = [first, order];
    }
    return head;
  }

  #floor(): number {
    let least = Number.POSITIVE_INFINITY;
    for (const lane of this.#lanes.values()) if (lane.size > 0) least = Math.min(least, lane.served);
    return least === Number.POSITIVE_INFINITY ? this.#lastServed : least;
  }

  #lane({ tenant, weight }: Share): Lane<Q> {
    let lane = this.#lanes.get(tenant);
    if (lane === undefined) {
      lane = { weight, served: 0, servedHere: 0, waiting: new Map(), size: 0 };
      this.#lanes.set(tenant, lane);
      this.#lastCharged = null;
    }
    return lane;
  }
}

function classOf({ again, share }: Queued): number {
  if (share.urgency === IDLE_URGENCY) return IDLE_URGENCY;
  return again ? AGAIN : Math.sign(share.urgency);
}
