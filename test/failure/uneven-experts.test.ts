import { readFileSync, rmSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { RankStatus } from "#protocol/operator.ts";
import { stream } from "../support/client.ts";
import { logLines } from "../support/log-lines.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { skewedNano } from "../support/skewed-nano.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";
import { openTruth, type Truth } from "../support/truth.ts";

/**
 * A decode worker of two ranks over a checkpoint whose router chooses nothing but experts of the first: real processes, a
 * real control plane that looks at the loads every second.
 */

let model: string;
let system: System;
let truth: Truth;

beforeAll(async () => {
  model = skewedNano(0, [0, 1, 2, 3, 4, 5]);
  truth = await openTruth(model);
  system = await startSystem({
    MARGAY_MODEL: `nano=${model}`,
    MARGAY_BACKEND: "ref",
    MARGAY_DECODE_EP: "2",
    MARGAY_EP_BALANCE_SECONDS: "1",
    // A rank may be late because it waits for its turn on a loaded machine.
    MARGAY_EXCHANGE_DEADLINE_MS: "10000",
  });
  await system.ready("prefill", 1);
  await system.ready("decode", 2);
}, 120_000);
afterAll(async () => {
  await truth?.[Symbol.asyncDispose]();
  const code = await system?.stop();
  rmSync(model, { recursive: true, force: true });
  expect(code).toBe(0);
}, 90_000);

interface Span {
  readonly name: string;
  readonly startMs: number;
  readonly ms: number;
}

const TOKENS = 500;
const PROMPTS = ["a fox", "a bear", "an owl", "a mill"].map((hero) => `Tell me a story about ${hero}.`);
const run = (prompt: string) =>
  stream(system.url, "/v1/completions", {
    ...{ model: "nano", prompt, temperature: 0, max_tokens: TOKENS, min_tokens: TOKENS },
  });
const decodeRanks = () => system.ready("decode", 2);
/** What a rank's threads do in the next seconds. */
const recorded = async ({ healthUrl }: RankStatus) =>
  (await (await fetch(`${healthUrl}/trace?ms=8000`)).json()) as readonly Span[];

/** Steps of a rank that gave its streams nothing, in a row: most of them when its expert map was changed, and otherwise. */
function missedSteps(spans: readonly Span[]): { readonly atChange: number; readonly otherwise: number } {
  const startsOf = (wanted: string) => spans.filter(({ name }) => name === wanted).map(({ startMs }) => startMs);
  const [samples, steps, changes] = [startsOf("sample"), startsOf("step"), startsOf("new expert map")];
  const missed = { atChange: 0, otherwise: 0 };
  for (let i = 1; i < samples.length; i++) {
    const between = (at: number) => at > samples[i - 1]! && at <= samples[i]!;
    const kind = changes.some(between) ? "atChange" : "otherwise";
    missed[kind] = Math.max(missed[kind], steps.filter(between).length - 1);
  }
  return missed;
}

/** Bytes of results that a rank has sent to the other one. */
const combined = async ({ healthUrl }: RankStatus) => {
  for (const [labels, bytes] of await system.metric(healthUrl, "margay_exchange_bytes_total"))
    if (labels.includes("combined")) return bytes;
  return 0;
};

/** Processor time a process has used, milliseconds. */
function usedMs(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "latin1")
    .replace(/^.*\) /, "")
    .split(" ");
  const ticksPerSecond = 100;
  return ((Number(fields[11]) + Number(fields[12])) * 1000) / ticksPerSecond;
}

test("a group that has nothing to do uses next to no processor time", async () => {
  const ranks = await decodeRanks();
  const before = ranks.map(({ pid }) => usedMs(pid));
  const began = performance.now();
  await new Promise((resolve) => setTimeout(resolve, 3_000));
  const passedMs = performance.now() - began;
  const shares = ranks.map(({ pid }, rank) => (usedMs(pid) - before[rank]!) / passedMs);
  process.stdout.write(
    `    idle ranks use ${shares.map((share) => (100 * share).toFixed(1)).join(" and ")} % of a core\n`,
  );
  for (const share of shares) expect(share).toBeLessThan(0.1);
}, 120_000);

test("experts are moved under load: the text stays, and no stream waits longer than two steps", async () => {
  const wanted: string[] = [];
  for (const prompt of PROMPTS) wanted.push(await truth.complete(prompt, TOKENS));
  const ranks = await decodeRanks();
  expect(system.log()).not.toContain("experts were moved");
  const recordings = Promise.all(ranks.map(recorded));
  const answers = await Promise.all(PROMPTS.map(run));
  expect(logLines(system, "experts were moved").length).toBeGreaterThan(0);
  for (const [i, answer] of answers.entries()) {
    expect(answer.error).toBeNull();
    expect(answer.content).toBe(wanted[i]);
    expect(answer.comments.at(-1)).not.toMatch(/x-margay-attempts/);
  }
  for (const spans of await recordings) {
    // It held streams, and was stepping when the map changed.
    const samples = spans.filter(({ name }) => name === "sample").map(({ startMs }) => startMs);
    const change = spans.find(({ name }) => name === "new expert map");
    expect(samples.length).toBeGreaterThan(50);
    expect(samples[0]).toBeLessThan(change!.startMs);
    expect(samples.at(-1)).toBeGreaterThan(change!.startMs);
    const { atChange, otherwise } = missedSteps(spans);
    process.stdout.write(`    steps missed in a row: ${atChange} at the change, ${otherwise} otherwise\n`);
    // A rank whose planner gets no processor for a while misses steps without any change.
    expect(atChange).toBeLessThanOrEqual(Math.max(2, otherwise));
  }
  await expectNothingHeld(system);
}, 120_000);

test("the moved experts do the work: both ranks send results, and the load is even", async () => {
  const ranks = await decodeRanks();
  for (const { group } of ranks) expect(group).toMatchObject({ size: 2, mapVersion: expect.toSatisfy((v) => v >= 1) });
  const before = await Promise.all(ranks.map(combined));
  const looks = logLines(system, "experts were moved").length;
  await Promise.all(PROMPTS.map(run));
  const after = await Promise.all(ranks.map(combined));
  // Without the move nothing would be computed at rank 1, and rank 0 would compute for both.
  for (const [rank, bytes] of after.entries()) expect(bytes - before[rank]!).toBeGreaterThan(100_000);
  const imbalance = await waitFor(
    "a look at the load after the move",
    async () => {
      for (const [labels, value] of await system.metric(system.url, "margay_expert_imbalance"))
        if (labels.includes('map="before"') && value < 1.9) return value;
      return null;
    },
    15_000,
    system.log,
  );
  process.stdout.write(
    `    measured imbalance after the move: ${imbalance.toFixed(2)}, moved again ${logLines(system, "experts were moved").length - looks} times\n`,
  );
  expect(imbalance).toBeLessThan(1.3);
}, 120_000);
