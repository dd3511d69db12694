import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { RankStatus } from "#protocol/operator.ts";
import { stream } from "../support/client.ts";
import { type ExchangeProxy, freePorts, startExchangeProxy } from "../support/exchange-proxy.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { letRankFall, wholeGroup } from "../support/rank-fall.ts";
import { runCli, type System, startSystem } from "../support/system.ts";
import { openTruth, type Truth } from "../support/truth.ts";

/**
 * A decode worker of two ranks in processes of their own. What they exchange passes through a proxy, so that a rank can be
 * made to fall in a known place of a step.
 */

let system: System;
let proxy: ExchangeProxy;
let truth: Truth;
/** What is answered to PROMPTS when nothing falls. */
const texts: string[] = [];

beforeAll(async () => {
  truth = await openTruth();
  for (const prompt of PROMPTS) texts.push(await truth.complete(prompt, LONG));
  const told = await freePorts(2);
  const port = await freePorts(2);
  proxy = await startExchangeProxy(told, port);
  system = await startSystem({
    MARGAY_BACKEND: "ref",
    MARGAY_DECODE_EP: "2",
    MARGAY_EXCHANGE_TRANSPORT: "tcp",
    MARGAY_EXCHANGE_PORT: String(port),
    MARGAY_EXCHANGE_ADVERTISE: `127.0.0.1:${told}`,
  });
  await system.ready("prefill", 1);
  await system.ready("decode", 2);
}, 120_000);
afterAll(async () => {
  await truth?.[Symbol.asyncDispose]();
  const code = await system?.stop();
  await proxy?.close();
  expect(code).toBe(0);
}, 90_000);

const LONG = 60;
const PROMPTS = ["a fox", "a bear", "an owl", "a mill"].map((hero) => `Tell me a story about ${hero}.`);
const run = (prompt: string, tokens: number, onChunk = () => {}) =>
  stream(
    system.url,
    "/v1/completions",
    { model: "nano", prompt, temperature: 0, max_tokens: tokens, min_tokens: tokens },
    { onChunk },
  );

const decodeRanks = async (): Promise<readonly RankStatus[]> =>
  [...(await system.ready("decode", 2))].sort((a, b) => (a.rankId < b.rankId ? -1 : 1));

test("a worker of two ranks answers, shows its ranks, and its metrics appear", async () => {
  const prompts = ["Tell me about foxes.", "Tell me about bears.", "What is the capital of Japan?", "One, two, three"];
  const answers = await Promise.all(prompts.map((prompt) => run(prompt, 24)));
  for (const [i, prompt] of prompts.entries()) expect(answers[i]!.content).toBe(await truth.complete(prompt, 24));
  const ranks = await decodeRanks();
  const { stdout } = await runCli(["status"], { PATH: process.env.PATH ?? "", MARGAY_STATE_DIR: system.stateFolder });
  for (const [number, { workerId }] of ranks.entries()) {
    expect(stdout).toMatch(new RegExp(`\\n${workerId} +${number}/2 +\\d+ \\(2 ranks\\) +decode +ready`));
  }
  for (const { healthUrl } of ranks) {
    const value = async (name: string, label = "") => {
      for (const [labels, sample] of await system.metric(healthUrl, name)) if (labels.includes(label)) return sample;
      return 0;
    };
    expect(await value("margay_exchange_bytes_total", "dispatched")).toBeGreaterThan(10_000);
    expect(await value("margay_exchange_bytes_total", "combined")).toBeGreaterThan(10_000);
    expect(await value("margay_exchange_exposed_seconds_total")).toBeGreaterThan(0);
    expect(await value("margay_zero_expert_share")).toBeGreaterThan(0);
    // Of the three that nano chooses per row.
    expect(await value("margay_real_experts_per_token")).toBeGreaterThan(0.5);
    expect(await value("margay_real_experts_per_token")).toBeLessThan(3);
  }
  await expectNothingHeld(system);
}, 120_000);

describe("rank 1 falls", () => {
  const falls = (["killed", "stopped", "cut off"] as const).flatMap((how) =>
    (["dispatch", "experts", "combine"] as const).map((phase) => [how, phase] as const),
  );

  test.each(falls)(
    "%s, in %s: detected, formed anew and heard of again in time, and every text is right",
    async (how, phase) => {
      const [, victim] = await decodeRanks();
      const told = PROMPTS.map((): number[] => []);
      const fall = { how, phase, after: 30, pid: victim!.pid };
      const { fellMs, answers } = await letRankFall(system, proxy, fall, () =>
        PROMPTS.map((prompt, i) => {
          told[i] = [];
          return run(prompt, LONG, () => void told[i]!.push(Date.now()));
        }),
      );
      if (how === "stopped") {
        // It slept through everything: what it still says names a group that is over.
        process.kill(victim!.pid, "SIGCONT");
      }
      const nextTokens: number[] = [];
      for (const [i, answer] of (await Promise.all(answers)).entries()) {
        expect(answer.error).toBeNull();
        expect(answer.content).toBe(texts[i]);
        if (/x-margay-attempts: [2-9]/.test(answer.comments.at(-1) ?? ""))
          nextTokens.push(endOfPause(told[i]!, fellMs));
      }
      expect(nextTokens.length).toBeGreaterThan(0);
      const longest = Math.max(...nextTokens);
      process.stdout.write(`    the next token of an interrupted stream came after ${longest} ms\n`);
      expect(longest).toBeLessThan(15_000);
      await wholeGroup(system, "decode", 2);
      await expectNothingHeld(system);
    },
    180_000,
  );
});

/** When a stream's longest silence since the fall ended, milliseconds after the fall: what it lost is in there. */
function endOfPause(toldMs: readonly number[], fellMs: number): number {
  let [before, longest, end] = [fellMs, -1, fellMs];
  for (const ms of toldMs) {
    if (ms < fellMs) continue;
    if (ms - before > longest) [longest, end] = [ms - before, ms];
    before = ms;
  }
  return end - fellMs;
}
