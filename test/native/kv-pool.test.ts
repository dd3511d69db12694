import { beforeAll, describe, expect, test } from "vitest";
import { BLOCK_STATES, BLOCK_TRANSITIONS } from "#protocol/lifecycle.ts";
import { testNativeClaims } from "../support/native-claims.ts";
import { buildNativePrograms, nativeReport } from "../support/native-program.ts";

describe("the life of a block", () => {
  beforeAll(() => buildNativePrograms(), 20 * 60_000);

  test("native and TypeScript have the same states in the same order, and allow the same transitions", () => {
    const [table] = nativeReport("kv_pool", ["states"]) as [Record<string, string[]>];
    expect(Object.keys(table)).toEqual([...BLOCK_STATES]);
    for (const state of BLOCK_STATES) expect(table[state]!.sort(), state).toEqual([...BLOCK_TRANSITIONS[state]].sort());
  });
});

describe("the pool", () => {
  testNativeClaims(
    "kv_pool",
    [],
    [
      "a sequence grows by blocks, its table stays where it is",
      "a full block is shared while its sequence still works",
      "one token at least is left to compute",
      "the next turn goes on from all computed rows",
      "of a block in which a prompt branches off or ends the shared rows are copied",
      "a pool too full to copy shares whole blocks",
      "a block equal to a cached one stays private",
      "the longest unused goes first, its last block before its first",
      "a pinned block is not evicted",
      "a sequence that is not kept leaves only what was cached before",
      "received blocks are attached, grow and end in the cache",
      "of an incomplete transfer the leading blocks are kept",
      "a closed sequence's blocks wait for their flights",
      "changes are told net and once",
      "bad arguments are refused",
    ],
  );
});

describe.each(["1", "20261123"])("a hundred thousand random operations, seed %s", (seed) => {
  testNativeClaims(
    "kv_pool_random",
    [seed, "100000"],
    ["random use agrees with a simple model", "and with a second tier, damaged now and then"],
  );
});
