import { randomInt } from "node:crypto";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { buildSanitized, runSanitized, type Sanitizer, sanitizerFault } from "../support/sanitized-programs.ts";

type Runs = Readonly<Record<string, readonly string[]>>;

/** Everything that parses, counts or moves bytes. */
const MEMORY: Runs = {
  checksum: [],
  kv_pool: [],
  kv_pool_random: ["3", "2000"],
  kv_tier: [mkdtempSync(join(tmpdir(), "margay-tier-"))],
  kv_transfer: [],
  kv_refusals: [],
  kv_lost_peers: [],
  kernels: [],
  weights: ["models/nano", "-"],
  engine_numeric: [],
  expert_exchange: [],
  expert_ranks: [],
  engine_random: ["3", "300", "1", "1"],
};

/** Everything with more than one thread. */
const THREADS: Runs = {
  thread_pool: [],
  engine_tier: [],
  kv_transfer: [],
  kv_refusals: [],
  kv_lost_peers: [],
  kv_waits: [],
  weights: ["models/nano", "-"],
  expert_exchange: [],
  expert_ranks: [],
  engine_random: ["4", "300", "0", "2"],
};

const FUZZ_SECONDS = "8";

function suite(sanitizer: Sanitizer, runs: Runs, more: readonly string[]): void {
  const fault = sanitizerFault(sanitizer);
  if (fault !== undefined) {
    test.skip(`not run here: ${fault}`, () => {});
    return;
  }
  beforeAll(() => buildSanitized(sanitizer, [...Object.keys(runs), ...more]), 20 * 60_000);

  test.each(Object.entries(runs))(
    "%s",
    (program, args) => {
      const run = runSanitized(sanitizer, program, args);
      expect(run.stderr).not.toMatch(/Sanitizer|runtime error/);
      expect(run.stdout).not.toMatch(/^FAILED/m);
      expect(run.status, run.stderr).toBe(0);
    },
    150_000,
  );

  if (!more.includes("fuzz")) return;
  test.each([
    ["the seed of every run", "1"],
    ["a seed of this run", String(randomInt(2 ** 31))],
  ])("readers of others' bytes survive damage, %s", (_, seed) => {
    const run = runSanitized(sanitizer, "fuzz", [seed, FUZZ_SECONDS]);
    expect(run.status, `seed ${seed}\n${run.stdout}${run.stderr}`).toBe(0);
  });
}

describe("no memory is misused and nothing undefined done by", () => {
  suite("address,undefined", MEMORY, ["fuzz"]);
});

describe("no data race in", () => {
  suite("thread", THREADS, []);
});
