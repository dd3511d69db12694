import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { RankStatus } from "#protocol/operator.ts";
import { type Answer, stream } from "../support/client.ts";
import { type ExchangeProxy, freePorts, refusalOf, startExchangeProxy } from "../support/exchange-proxy.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { letRankFall, wholeGroup } from "../support/rank-fall.ts";
import { type System, startSystem } from "../support/system.ts";
import { openTruth, type Truth } from "../support/truth.ts";

/**
 * Two systems beside each other: in one a prefill worker of two ranks loses one of them again and again, in the other a rank
 * of a decode worker sleeps for half a minute meanwhile.
 */

interface Watched {
  readonly system: System;
  readonly proxy: ExchangeProxy;
  /** Where rank 0 listens, past the proxy. */
  readonly port: number;
}

let truth: Truth;
let prefills: Watched;
let decodes: Watched;
/** What became of the sleeper. */
let slept: Promise<void>;
let stopped: number | null = null;

async function watched(several: "PREFILL" | "DECODE"): Promise<Watched> {
  const told = await freePorts(2);
  const port = await freePorts(2);
  const proxy = await startExchangeProxy(told, port);
  const system = await startSystem({
    MARGAY_BACKEND: "ref",
    [`MARGAY_${several}_EP`]: "2",
    MARGAY_STEP_TOKENS: "32",
    MARGAY_EXCHANGE_TRANSPORT: "tcp",
    MARGAY_EXCHANGE_PORT: String(port),
    MARGAY_EXCHANGE_ADVERTISE: `127.0.0.1:${told}`,
  });
  return { system, proxy, port };
}

beforeAll(async () => {
  truth = await openTruth();
  [prefills, decodes] = [await watched("PREFILL"), await watched("DECODE")];
  for (const { system } of [prefills, decodes]) {
    await system.ready("prefill", system === prefills.system ? 2 : 1);
    await system.ready("decode", system === prefills.system ? 1 : 2);
  }
  slept = sleepThirtySeconds();
  slept.catch(() => {});
}, 180_000);
afterAll(async () => {
  if (stopped !== null) process.kill(stopped, "SIGCONT");
  await truth?.[Symbol.asyncDispose]();
  const codes = await Promise.all([prefills, decodes].map((one) => one?.system.stop()));
  for (const one of [prefills, decodes]) await one?.proxy.close();
  expect(codes).toEqual([0, 0]);
}, 120_000);

const run = ({ system }: Watched, prompt: string, tokens: number) =>
  stream(system.url, "/v1/completions", {
    ...{ model: "nano", prompt, temperature: 0, max_tokens: tokens, min_tokens: tokens },
  });

/** Prompts of several hundred tokens, none of which begins as another one does. */
const longPrompts = (round: number) =>
  [0, 1, 2].map((number) =>
    Array.from({ length: 40 }, (_, i) => `item ${3 * round + number} is ${(i * 7919 + number * 104729) % 997}`).join(
      ", ",
    ),
  );

async function expectRight(answers: readonly Answer[], prompts: readonly string[], tokens: number): Promise<void> {
  for (const [i, answer] of answers.entries()) {
    expect(answer.error).toBeNull();
    expect(answer.content).toBe(await truth.complete(prompts[i]!, tokens));
  }
}

const secondRank = (ranks: readonly RankStatus[]) => [...ranks].sort((a, b) => (a.rankId < b.rankId ? -1 : 1))[1]!;

describe("a prefill rank falls while prompts are computed", () => {
  test.each([
    ["killed", "dispatch"],
    ["stopped", "experts"],
    ["cut off", "combine"],
  ] as const)(
    "%s, in %s: the prompts are computed all the same, and every text is right",
    async (how, phase) => {
      const { system, proxy } = prefills;
      const { pid } = secondRank(await system.ready("prefill", 2));
      const prompts = longPrompts(["killed", "stopped", "cut off"].indexOf(how));
      const { answers } = await letRankFall(system, proxy, { how, phase, after: 12, pid }, () =>
        prompts.map((prompt) => run(prefills, prompt, 12)),
      );
      if (how === "stopped") process.kill(pid, "SIGCONT");
      await expectRight(await Promise.all(answers), prompts, 12);
      await wholeGroup(system, "prefill", 2);
      await expectNothingHeld(system);
    },
    180_000,
  );
});

async function sleepThirtySeconds(): Promise<void> {
  const { system, proxy, port } = decodes;
  const victim = secondRank(await system.ready("decode", 2));
  const before = await wholeGroup(system, "decode", 2);
  const prompts = ["a fox", "a bear", "an owl", "a mill"].map((hero) => `Tell me a story about ${hero}.`);
  const fall = { how: "stopped", phase: "combine", after: 30, pid: victim.pid } as const;
  stopped = victim.pid;
  const { fellMs, answers } = await letRankFall(system, proxy, fall, () =>
    prompts.map((prompt) => run(decodes, prompt, 60)),
  );
  // The other one serves alone, what was interrupted and what comes.
  await expectRight(await Promise.all(answers), prompts, 60);
  await expectRight([await run(decodes, prompts[0]!, 60)], prompts, 60);
  await new Promise((resolve) => setTimeout(resolve, Math.max(0, fellMs + 30_000 - Date.now())));
  process.kill(victim.pid, "SIGCONT");
  stopped = null;

  // It comes back as itself, into a new group; what it said in the old one counts for nothing.
  const after = await wholeGroup(system, "decode", 2);
  expect(after).toBeGreaterThan(before);
  const ranks = await system.ready("decode", 2);
  expect(secondRank(ranks).pid).toBe(victim.pid);
  const stale = async () => {
    let sum = 0;
    for (const { healthUrl } of ranks)
      for (const value of (await system.metric(healthUrl, "margay_exchange_stale_messages_total")).values())
        sum += value;
    return sum;
  };
  const refusedBefore = await stale();
  expect(await refusalOf(port, proxy.greetings()[0]!)).toBe("stale_epoch");
  expect(await refusalOf(port, proxy.greetings().at(-1)!)).toBe("duplicate");
  expect(await stale()).toBe(refusedBefore + 1);
  await expectRight(await Promise.all(prompts.map((prompt) => run(decodes, prompt, 60))), prompts, 60);
  expect(await wholeGroup(system, "decode", 2)).toBe(after);
  await expectNothingHeld(system);
}

test("a decode rank that slept for 30 s is missed by nobody, and its old group is over when it wakes", async () => {
  await slept;
}, 180_000);
