import { hash } from "node:crypto";
import { BLOCK_HASH_BYTES, BLOCK_TOKENS } from "./kv.ts";

/**
 * Content hash of every full block of `tokens`, chained: a block's hash names the block and everything before it.
 *
 *   h(-1) = SHA-256("margay-kv-1" || modelHash as UTF-8)[0..16)
 *   h(i)  = SHA-256(h(i-1) || tokens of block i as little-endian int32)[0..16)
 *
 * native/src/kv/block_hash.cc computes the same; a test holds them together. Only the first `limit` tokens count.
 * Returns the hashes as latin1 strings of 16 characters, cheap as keys of a Map.
 */
export function blockHashes(modelHash: string, tokens: Int32Array, limit: number = tokens.length): string[] {
  const hashes: string[] = [];
  let previous = hash("sha256", Buffer.from(`margay-kv-1${modelHash}`), "buffer").subarray(0, BLOCK_HASH_BYTES);
  const input = Buffer.alloc(BLOCK_HASH_BYTES + BLOCK_TOKENS * 4);
  for (let start = 0; start + BLOCK_TOKENS <= limit; start += BLOCK_TOKENS) {
    previous.copy(input, 0);
    for (let i = 0; i < BLOCK_TOKENS; i++) input.writeInt32LE(tokens[start + i]!, BLOCK_HASH_BYTES + i * 4);
    previous = hash("sha256", input, "buffer").subarray(0, BLOCK_HASH_BYTES);
    hashes.push(previous.toString("latin1"));
  }
  return hashes;
}

/** Splits concatenated hashes as they travel in `KvEvents` and `KvSnapshot` into keys. */
export function splitHashes(bytes: Uint8Array): string[] {
  const all = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
  const hashes: string[] = [];
  for (let at = 0; at + BLOCK_HASH_BYTES <= all.length; at += BLOCK_HASH_BYTES) {
    hashes.push(all.slice(at, at + BLOCK_HASH_BYTES));
  }
  return hashes;
}
