import { createHash } from "node:crypto";
import type { Random } from "#service/clock.ts";

/** Marks our keys for people and for scanners of leaked secrets. */
const PREFIX = "mgy-";
const KEY_BYTES = 32;
/** A longer text is nobody's key and is not hashed. */
const LONGEST_KEY = 512;

/** A new API key: 256 random bits. It is shown once; what is kept of it is its digest. */
export function newApiKey(random: Random): string {
  return PREFIX + random.hex(KEY_BYTES);
}

/**
 * What is kept of a key, in hexadecimal. SHA-256 without salt or stretching is enough: a key is 256 random bits, so
 * nobody finds one by trying, no two are alike, and every request can afford the hash. Keys are looked up by digest,
 * so the time a look-up takes says nothing of the keys there are.
 */
export function keyDigest(key: string): string | null {
  return key.length > LONGEST_KEY ? null : createHash("sha256").update(key).digest("hex");
}
