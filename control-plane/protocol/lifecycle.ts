/**
 * The life of a KV block. The same table stands in native/src/kv/block_state.h; a test compares them.
 *
 *   prefill:  free -> reserved -> filling -> sealed -> sending -> cached -> free
 *   decode:   free -> reserved -> receiving -> sealed -> attached -> cached -> free
 *
 * B1 only native changes a state, and bumps the generation on every return to free
 * B2 a lease names slot and generation; a late user is refused
 * B3 a block is readable only when sealed, sending, attached or cached
 * B4 a pinned or attached block is never evicted
 * B5 the counts of all states add up to the pool's size
 * B6 a KV event leaves the node after the change is visible
 * B7 only the owner of a pool writes it
 */
export const BLOCK_STATES = [
  "free",
  "reserved",
  "filling",
  "receiving",
  "sealed",
  "sending",
  "attached",
  "cached",
] as const;
export type BlockState = (typeof BLOCK_STATES)[number];

/** Allowed next states of each state. Any state may return to `free` when its sequence ends. */
export const BLOCK_TRANSITIONS: Readonly<Record<BlockState, readonly BlockState[]>> = {
  free: ["reserved"],
  reserved: ["filling", "receiving", "free"],
  filling: ["sealed", "free"],
  receiving: ["sealed", "free"],
  sealed: ["sending", "attached", "cached", "free"],
  sending: ["sealed", "cached", "free"],
  attached: ["filling", "cached", "free"],
  cached: ["sending", "attached", "free"],
};

/** Blocks of one pool by state; the values add up to the pool's size. */
export type BlockCounts = Readonly<Record<BlockState, number>>;
