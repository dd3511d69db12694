import { splitHashes } from "#protocol/block-hash.ts";
import type { RankId } from "#protocol/ids.ts";
import type { KvEvents, KvReplay, KvSnapshot } from "#protocol/kv.ts";

interface RankPrefixes {
  readonly epoch: number;
  seq: number;
  hashes: Set<string>;
  /** Events above a gap, in order: they follow what closes it and is on its way. */
  ahead: KvEvents[];
}

/** What placement asks of the index. */
export interface PrefixLookup {
  /** How many leading blocks of a prompt, given by their chained hashes, a rank holds. */
  cachedBlocks(rankId: RankId, hashes: readonly string[]): number;
}

/** Most events kept of a rank while a gap is open; without the earlier ones it is asked again. */
const MOST_AHEAD = 256;
/** Most blocks remembered of a rank, 64 million tokens: what it stores beyond them is not believed of it. */
const MOST_BLOCKS = 1_000_000;

/**
 * Owns what this control plane believes of every rank's prefix cache. Its size is bounded by the ranks' own pools, as a
 * rank tells what it removes, and by MOST_BLOCKS for one that does not.
 *
 *   (unknown) -> followed by events -> (gap: replay or snapshot) -> followed ... -> forgotten with its epoch
 *
 * I1 events are obeyed in order and without a gap; those above one wait for the replay or snapshot that closes it
 * I2 a wrong belief costs time, never correctness: the decode rank decides what it has
 * I3 the ranks of a block are exactly those that have it among their own
 */
export class PrefixIndex implements PrefixLookup {
  readonly #ranks = new Map<RankId, RankPrefixes>();
  /** By block the ranks that have it, one alone as itself. Of a thousand ranks few know how a prompt begins: only they are asked. */
  readonly #holders = new Map<string, RankId | Set<RankId>>();
  readonly #mostBlocks: number;

  constructor(mostBlocks: number = MOST_BLOCKS) {
    this.#mostBlocks = mostBlocks;
  }

  /** Ranks something is known of. */
  get size(): number {
    return this.#ranks.size;
  }

  /** Follows an event. False: there is a gap, ask the rank for what was missed. */
  follow(events: KvEvents): boolean {
    let known = this.#ranks.get(events.rankId);
    if (known === undefined || known.epoch < events.epoch) {
      this.forget(events.rankId);
      known = { epoch: events.epoch, seq: -1, hashes: new Set(), ahead: [] };
      this.#ranks.set(events.rankId, known);
    }
    if (known.epoch > events.epoch || events.seq <= known.seq) return true;
    if (events.seq !== known.seq + 1) {
      if (known.ahead.length >= MOST_AHEAD) known.ahead.shift();
      known.ahead.push(events);
      return false;
    }
    known.seq = events.seq;
    for (const hash of splitHashes(events.removed)) {
      if (known.hashes.delete(hash)) this.#withoutHolder(hash, events.rankId);
    }
    this.#store(events.rankId, known, splitHashes(events.stored));
    return true;
  }

  /** Number of the last event followed of this epoch; -1: none. */
  lastSeq(rankId: RankId, epoch: number): number {
    const known = this.#ranks.get(rankId);
    return known?.epoch === epoch ? known.seq : -1;
  }

  /** Follows events that were missed, then those that came meanwhile. */
  replay({ rankId, epoch, seq, changes }: KvReplay): void {
    const known = this.#ranks.get(rankId);
    const ahead = known?.epoch === epoch ? known.ahead.splice(0) : [];
    const missed = changes.map((change, i) => ({ kind: "kv-events", rankId, epoch, seq: seq + i, ...change }) as const);
    for (const events of [...missed, ...ahead]) this.follow(events);
  }

  /** Takes a snapshot and what came after it. A gap that is left shows at the next event or heartbeat. */
  restore(snapshot: KvSnapshot): void {
    const known = this.#ranks.get(snapshot.rankId);
    if (known !== undefined && known.epoch > snapshot.epoch) return;
    const sameEpoch = known?.epoch === snapshot.epoch;
    if (sameEpoch && known.seq >= snapshot.seq) return;
    this.forget(snapshot.rankId);
    const restored: RankPrefixes = { epoch: snapshot.epoch, seq: snapshot.seq, hashes: new Set(), ahead: [] };
    this.#ranks.set(snapshot.rankId, restored);
    this.#store(snapshot.rankId, restored, splitHashes(snapshot.hashes));
    if (sameEpoch) for (const events of known.ahead) this.follow(events);
  }

  /** True when events up to `seq` of this epoch are known. */
  isCurrent(rankId: RankId, epoch: number, seq: number): boolean {
    const known = this.#ranks.get(rankId);
    if (known === undefined || known.epoch !== epoch) return seq < 0;
    return known.seq >= seq;
  }

  forget(rankId: RankId): void {
    for (const hash of this.#ranks.get(rankId)?.hashes ?? []) this.#withoutHolder(hash, rankId);
    this.#ranks.delete(rankId);
  }

  cachedBlocks(rankId: RankId, hashes: readonly string[]): number {
    const holders = this.#holders.get(hashes[0] ?? "");
    const begins = typeof holders === "string" ? holders === rankId : holders?.has(rankId);
    const known = begins === true ? this.#ranks.get(rankId) : undefined;
    if (known === undefined) return 0;
    let count = 1;
    while (count < hashes.length && known.hashes.has(hashes[count]!)) count++;
    return count;
  }

  #store(rankId: RankId, { hashes }: RankPrefixes, stored: readonly string[]): void {
    for (const hash of stored) {
      if (hashes.size >= this.#mostBlocks) return;
      hashes.add(hash);
      const holders = this.#holders.get(hash);
      if (holders === undefined) this.#holders.set(hash, rankId);
      else if (typeof holders !== "string") holders.add(rankId);
      else if (holders !== rankId) this.#holders.set(hash, new Set([holders, rankId]));
    }
  }

  #withoutHolder(hash: string, rankId: RankId): void {
    const holders = this.#holders.get(hash);
    if (typeof holders === "object") holders.delete(rankId);
    if (holders === rankId || (typeof holders === "object" && holders.size === 0)) this.#holders.delete(hash);
  }
}
