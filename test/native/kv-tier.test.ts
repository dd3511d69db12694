import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { testNativeClaims } from "../support/native-claims.ts";

testNativeClaims(
  "kv_tier",
  [mkdtempSync(join(tmpdir(), "margay-tier-"))],
  [
    "evicted blocks come back from memory",
    "evicted blocks come back from a file without a name",
    "a damaged block is refused, counted and computed anew",
    "the budget is kept, and what is lost is told",
    "blocks that growth evicts are saved too",
    "a sequence that waits for pages begins with blocks of the second tier",
    "bad options are refused",
  ],
);
