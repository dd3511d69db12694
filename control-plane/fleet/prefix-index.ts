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
 */
export class PrefixIndex implements PrefixLookup {
  readonly #ranks = new Map<RankId, RankPrefixes>();
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
    for (const hash of splitHashes(events.removed)) known.hashes.delete(hash);
    for (const hash of splitHashes(events.stored)) if (known.hashes.size < this.#mostBlocks) known.hashes.add(hash);
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
    this.#ranks.set(snapshot.rankId, {
      epoch: snapshot.epoch,
      seq: snapshot.seq,
      hashes: new Set(splitHashes(snapshot.hashes).slice(0, this.#mostBlocks)),
      ahead: [],
    });
    if (sameEpoch) for (const events of known.ahead) this.follow(events);
  }

  /** True when events up to `seq` of this epoch are known. */
  isCurrent(rankId: RankId, epoch: number, seq: number): boolean {
    const known = this.#ranks.get(rankId);
    if (known === undefined || known.epoch !== epoch) return seq < 0;
    return known.seq >= seq;
  }

  forget(rankId: RankId): void {
    this.#ranks.delete(rankId);
  }

  cachedBlocks(rankId: RankId, hashes: readonly string[]): number {
    const known = this.#ranks.get(rankId);
    if (known === undefined) return 0;
    let count = 0;
    while (count < hashes.length && known.hashes.has(hashes[count]!)) count++;
    return count;
  }
}
