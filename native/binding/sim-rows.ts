import { blockHashes } from "#protocol/block-hash.ts";
import { BLOCK_TOKENS } from "#protocol/kv.ts";
import type { SimPool } from "./sim-pool.ts";
import type { SimSequence } from "./sim-sequence.ts";

/**
 * Rows of a simulated sequence. Each holds the digest of the text it was computed from, so that whoever reads a block of
 * another text notices.
 */

/** The rows from `from` to the sequence's length are computed: blocks fill, and are `inUse` once they are full. */
export function writeRows(pool: SimPool, sequence: SimSequence, from: number, inUse: "attached" | "sending"): void {
  const { lease, length, digests } = sequence;
  for (let index = Math.floor(from / BLOCK_TOKENS); index * BLOCK_TOKENS < length; index++) {
    const id = lease.blocks[index]!;
    pool.set(id, "filling");
    const end = Math.min(length, (index + 1) * BLOCK_TOKENS);
    for (let at = Math.max(from, index * BLOCK_TOKENS); at < end; at++) pool.write(id, at % BLOCK_TOKENS, digests[at]!);
    if ((index + 1) * BLOCK_TOKENS <= length) {
      pool.set(id, "sealed");
      pool.set(id, inUse);
    }
  }
}

/** As attention reads: everything before. Returns the digest of the text that the blocks hold up to row `at`. */
export function readRows(pool: SimPool, { handle, lease, length, digests }: SimSequence, at: number): number {
  for (let end = length; end > 0; end = Math.floor((end - 1) / BLOCK_TOKENS) * BLOCK_TOKENS) {
    const id = lease.blocks[Math.floor((end - 1) / BLOCK_TOKENS)]!;
    if (pool.read(id, (end - 1) % BLOCK_TOKENS) === digests[end - 1]) continue;
    pool.blame(`B2: slot ${handle.slot} reads rows of another text in block ${id}`);
  }
  return pool.read(lease.blocks[Math.floor(at / BLOCK_TOKENS)]!, at % BLOCK_TOKENS);
}

/** Full blocks that hold rows beyond `from` get their names. */
export function publishRows(pool: SimPool, sequence: SimSequence, from: number, modelHash: string): void {
  const full = Math.floor(sequence.length / BLOCK_TOKENS);
  const first = Math.floor(from / BLOCK_TOKENS);
  if (full <= first) return;
  if (sequence.hashes.length < full) {
    sequence.hashes = blockHashes(modelHash, Int32Array.from(sequence.tokens), full * BLOCK_TOKENS);
  }
  for (let index = first; index < full; index++) pool.publish(sequence.lease.blocks[index]!, sequence.hashes[index]!);
}
