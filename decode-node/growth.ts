import { BLOCK_TOKENS } from "#protocol/kv.ts";
import { FEWEST_STEPS } from "./step-pace.ts";

/**
 * Room for what is planned ahead. While a round of n steps runs, the next one is planned over lengths that do not have
 * the running round in them; each step gives one token and as many more as drafts are accepted. So a plan reserves, beyond
 * the settled length, what two rounds can come to: 2 n (1 + drafts). When the next round begins, the running one has used
 * up the U tokens it accepted, and R = 2 n (1 + drafts) - U are free: with one draft R = 4 n - U, within [2 n, 3 n].
 */
export function roomAhead(steps: number, drafts: number): number {
  return 2 * steps * (1 + drafts);
}

/** What growth is decided by. */
export interface Growing {
  /** KV rows after all settled steps. */
  readonly length: number;
  /** Tokens that blocks are kept for, by all plans so far. */
  readonly capacity: number;
  /** Most tokens it can come to. */
  readonly limit: number;
}

/** True when a round was used up since its room was made. */
export function isDue({ length, capacity, limit }: Growing, steps: number, drafts: number): boolean {
  return capacity < limit && capacity - length <= roomAhead(steps, drafts) - steps;
}

/** True when it may sit out before two more plans can help. */
export function isStarving({ length, capacity, limit }: Growing, drafts: number): boolean {
  return capacity < limit && capacity - length <= FEWEST_STEPS * (1 + drafts);
}

/** Tokens to keep blocks for, and how many blocks more that takes. */
export function growthOf({ length, capacity, limit }: Growing, steps: number, drafts: number) {
  const reserve = Math.max(capacity, Math.min(limit, length + roomAhead(steps, drafts)));
  return { reserve, blocks: blocksFor(reserve) - blocksFor(capacity) };
}

export function blocksFor(tokens: number): number {
  return Math.ceil(tokens / BLOCK_TOKENS);
}
