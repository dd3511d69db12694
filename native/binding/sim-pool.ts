import { BLOCK_TOKENS } from "#protocol/kv.ts";
import { BLOCK_STATES, BLOCK_TRANSITIONS, type BlockState } from "#protocol/lifecycle.ts";

import type { EngineStats } from "./native.ts";

interface Block {
  state: BlockState;
  generation: number;
  /** Name of the content once it is in the prefix cache. */
  hash: string | null;
  /** Sequences that lease it. */
  leases: number;
  /** What stands for its rows: of each the digest of the text up to it. */
  readonly rows: Int32Array;
}

/** States in which rows may be read, by the sequence that fills the block too. */
const READABLE: ReadonlySet<BlockState> = new Set(["filling", "sealed", "sending", "attached", "cached"]);

/** Blocks of one sequence: the first `shared` were found in the prefix cache. */
export interface SimLease {
  readonly blocks: number[];
  readonly shared: number;
}

/**
 * Owns the blocks of a simulated pool and their prefix cache: states, generations, leases, least recently used
 * eviction; instead of KV each row holds the digest of the text that it was computed from. The life of a block is
 * `BLOCK_TRANSITIONS`; B1 to B5 are checked by `broken`.
 */
export class SimPool {
  readonly #blocks: Block[];
  readonly #free: number[];
  readonly #cache = new Map<string, number>();
  /** Cached blocks nobody leases, least recently used first. */
  readonly #idle = new Set<number>();
  readonly #counters = { hitTokens: 0, missedTokens: 0, evictedBlocks: 0 };
  #violation: string | null = null;
  #stored: string[] = [];
  #removed: string[] = [];

  constructor(size: number) {
    this.#blocks = Array.from({ length: size }, () => ({
      state: "free",
      generation: 1,
      hash: null,
      leases: 0,
      rows: new Int32Array(BLOCK_TOKENS),
    }));
    this.#free = Array.from({ length: size }, (_, id) => size - 1 - id);
  }

  get size(): number {
    return this.#blocks.length;
  }

  /** Leases `count` blocks, of which as many as possible are the cached blocks named by `hashes`. Null: not enough. */
  open(hashes: readonly string[], count: number, use: "attached" | "sending"): SimLease | null {
    const shared: number[] = [];
    for (const hash of hashes) {
      const id = this.#cache.get(hash);
      if (id === undefined) break;
      shared.push(id);
    }
    const pinned = shared.filter((id) => this.#idle.has(id)).length;
    if (this.#free.length + this.#idle.size - pinned < count - shared.length) return null;
    for (const id of shared) {
      this.#idle.delete(id);
      this.#blocks[id]!.leases++;
      if (this.#blocks[id]!.state === "cached") this.#move(id, use);
    }
    this.#counters.hitTokens += shared.length * BLOCK_TOKENS;
    this.#counters.missedTokens += (hashes.length - shared.length) * BLOCK_TOKENS;
    const blocks = [...shared];
    while (blocks.length < count) blocks.push(this.#take());
    return { blocks, shared: shared.length };
  }

  /** Adds blocks to a lease, up to `count` in all. False, and nothing added: not enough. */
  grow(lease: SimLease, count: number): boolean {
    if (count - lease.blocks.length > this.available) return false;
    while (lease.blocks.length < count) lease.blocks.push(this.#take());
    return true;
  }

  get available(): number {
    return this.#free.length + this.#idle.size;
  }

  /** Moves a leased block to its next state. */
  set(id: number, state: BlockState): void {
    if (this.#blocks[id]!.state !== state) this.#move(id, state);
  }

  state(id: number): BlockState {
    return this.#blocks[id]!.state;
  }

  write(id: number, row: number, digest: number): void {
    this.#blocks[id]!.rows[row] = digest;
  }

  read(id: number, row: number): number {
    if (!READABLE.has(this.#blocks[id]!.state)) this.#violation ??= `B3: block ${id} is read while ${this.state(id)}`;
    return this.#blocks[id]!.rows[row]!;
  }

  /** A copy of its first `count` rows. */
  rows(id: number, count: number): Int32Array {
    return this.#blocks[id]!.rows.slice(0, count);
  }

  /** Notes that somebody found rows that are not of its text. */
  blame(violation: string): void {
    this.#violation ??= violation;
  }

  /** The first broken invariant that showed by itself; `broken` looks for more. */
  get violation(): string | null {
    return this.#violation;
  }

  /** Puts a full block under its content's name. A block whose content is there already stays private. */
  publish(id: number, hash: string): void {
    if (this.#cache.has(hash)) return;
    this.#blocks[id]!.hash = hash;
    this.#cache.set(hash, id);
    this.#stored.push(hash);
  }

  /** Gives leases back. A published block stays cached when `keep`, or when it came from the cache. */
  release(lease: SimLease, keep: boolean): void {
    lease.blocks.forEach((id, index) => {
      const block = this.#blocks[id]!;
      if (--block.leases > 0) return;
      if (block.hash !== null && (keep || index < lease.shared)) {
        this.#move(id, "cached");
        this.#idle.add(id);
      } else this.#reclaim(id);
    });
  }

  counts(): Record<BlockState, number> {
    const counts = Object.fromEntries(BLOCK_STATES.map((state) => [state, 0])) as Record<BlockState, number>;
    for (const block of this.#blocks) counts[block.state]++;
    return counts;
  }

  hashes(): string[] {
    return [...this.#cache.keys()];
  }

  /** Blocks and cache as an engine tells them. The cache is of full blocks and has one tier; bytes there are none. */
  stats(): Pick<EngineStats, "blocks" | "blocksAvailable" | "cache"> {
    const none = { hitTokens: 0, missedTokens: 0, evictedBlocks: 0, refusedBlocks: 0, bytes: 0 };
    return {
      blocks: this.counts(),
      blocksAvailable: this.#free.length + this.#idle.size,
      cache: { pool: { ...none, ...this.#counters }, second: none },
    };
  }

  /** Changes of the cache since the last call. */
  takeChanges(): { readonly stored: readonly string[]; readonly removed: readonly string[] } {
    const changes = { stored: this.#stored, removed: this.#removed };
    this.#stored = [];
    this.#removed = [];
    return changes;
  }

  /** Null, or the first broken invariant. `leased` holds the blocks of every sequence, repeated as often as leased. */
  broken(leased: readonly number[]): string | null {
    if (this.#violation !== null) return this.#violation;
    const leases = new Map<number, number>();
    for (const id of leased) leases.set(id, (leases.get(id) ?? 0) + 1);
    for (const [id, block] of this.#blocks.entries()) {
      if (block.leases !== (leases.get(id) ?? 0)) return `B2: block ${id} counts ${block.leases} leases`;
      const idle = block.state === "free" || block.state === "cached";
      if (idle !== (block.leases === 0)) return `B4: block ${id} is ${block.state} with ${block.leases} leases`;
      if (block.state === "cached" && (block.hash === null || !this.#idle.has(id))) return `block ${id} is lost`;
      if (block.hash !== null && this.#cache.get(block.hash) !== id) return `block ${id} is not under its name`;
    }
    const counts = this.counts();
    if (counts.free !== this.#free.length) return "B5: the free list does not match the states";
    if (counts.cached !== this.#idle.size) return "B5: the idle list does not match the states";
    return null;
  }

  #take(): number {
    let id = this.#free.pop();
    if (id === undefined) {
      id = this.#idle.values().next().value!;
      this.#idle.delete(id);
      this.#counters.evictedBlocks++;
      this.#reclaim(id);
      this.#free.pop();
    }
    this.#move(id, "reserved");
    this.#blocks[id]!.leases = 1;
    return id;
  }

  #reclaim(id: number): void {
    const block = this.#blocks[id]!;
    if (block.hash !== null) {
      this.#cache.delete(block.hash);
      this.#removed.push(block.hash);
      block.hash = null;
    }
    block.state = "free";
    block.generation++;
    this.#free.push(id);
  }

  #move(id: number, state: BlockState): void {
    const block = this.#blocks[id]!;
    if (!BLOCK_TRANSITIONS[block.state].includes(state)) {
      this.#violation ??= `B1: block ${id} went from ${block.state} to ${state}`;
    }
    block.state = state;
  }
}
