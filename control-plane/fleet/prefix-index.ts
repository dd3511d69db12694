import { splitHashes } from "#protocol/block-hash.ts";
import type { RankId } from "#protocol/ids.ts";
import type { KvEvents, KvSnapshot } from "#protocol/kv.ts";

interface RankPrefixes {
  readonly epoch: number;
  seq: number;
  readonly hashes: Set<string>;
}

/** What placement asks of the index. */
export interface PrefixLookup {
  /** How many leading blocks of a prompt, given by their chained hashes, a rank holds. */
  cachedBlocks(rankId: RankId, hashes: readonly string[]): number;
}

/**
 * Owns what this control plane believes of every rank's prefix cache. Its size is bounded by the ranks' own pools: a rank
 * tells what it removes.
 *
 *   (unknown) -> snapshot -> followed by events -> (gap: snapshot again) -> forgotten
 *
 * I1 only a state without a gap is used: from a gap to the next snapshot the rank counts as knowing nothing new
 * I2 a wrong belief costs time, never correctness: the decode rank decides what it has
 */
export class PrefixIndex implements PrefixLookup {
  readonly #ranks = new Map<RankId, RankPrefixes>();

  /** Follows an event. False: there is a gap, ask the rank for a snapshot. */
  follow(events: KvEvents): boolean {
    let known = this.#ranks.get(events.rankId);
    if (known === undefined || known.epoch < events.epoch) {
      if (events.seq !== 0) return false;
      known = { epoch: events.epoch, seq: -1, hashes: new Set() };
      this.#ranks.set(events.rankId, known);
    }
    if (known.epoch > events.epoch || events.seq <= known.seq) return true;
    if (events.seq !== known.seq + 1) return false;
    known.seq = events.seq;
    for (const hash of splitHashes(events.removed)) known.hashes.delete(hash);
    for (const hash of splitHashes(events.stored)) known.hashes.add(hash);
    return true;
  }

  restore(snapshot: KvSnapshot): void {
    const known = this.#ranks.get(snapshot.rankId);
    if (
      known !== undefined &&
      (known.epoch > snapshot.epoch || (known.epoch === snapshot.epoch && known.seq >= snapshot.seq))
    )
      return;
    this.#ranks.set(snapshot.rankId, {
      epoch: snapshot.epoch,
      seq: snapshot.seq,
      hashes: new Set(splitHashes(snapshot.hashes)),
    });
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
