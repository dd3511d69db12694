import type { KvChange } from "#protocol/kv.ts";

/** Most bytes of hashes kept for a replay: the last minutes of a busy rank. */
const MOST_BYTES = 256 * 1024;
/** What an empty change counts, so that their number is bounded too. */
const CHANGE_BYTES = 64;

/**
 * Owns the numbers of a rank's KV events and the last of them, for whoever missed some.
 *
 *   noted (numbered from 0) -> kept -> dropped, the oldest first
 */
export class KvJournal {
  /** Number of the last change; -1 before the first. */
  seq = -1;
  readonly #kept: KvChange[] = [];
  readonly #mostBytes: number;
  #bytes = 0;

  constructor(mostBytes: number = MOST_BYTES) {
    this.#mostBytes = mostBytes;
  }

  /** Returns the change's number. */
  note(change: KvChange): number {
    this.#kept.push(change);
    this.#bytes += sizeOf(change);
    while (this.#bytes > this.#mostBytes) this.#bytes -= sizeOf(this.#kept.shift()!);
    return ++this.seq;
  }

  /** All changes after number `seq`; null: they are not all kept, or `seq` is none of ours. */
  since(seq: number): readonly KvChange[] | null {
    const missed = this.seq - seq;
    if (missed < 0 || missed > this.#kept.length) return null;
    return this.#kept.slice(this.#kept.length - missed);
  }
}

function sizeOf({ stored, removed }: KvChange): number {
  return CHANGE_BYTES + stored.byteLength + removed.byteLength;
}
