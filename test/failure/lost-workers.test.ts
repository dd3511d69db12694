import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { RankStatus } from "#protocol/operator.ts";
import { type Answer, stream } from "../support/client.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";
import { openTruth, type Truth } from "../support/truth.ts";

/** `ref` computes each row by itself, so the text with a fault must be the text without it, to the letter. */

let system: System;
let truth: Truth;

beforeAll(async () => {
  truth = await openTruth();
  system = await startSystem({
    MARGAY_BACKEND: "ref",
    MARGAY_PREFILL: "2..2",
    MARGAY_DECODE: "2..2",
    MARGAY_STEP_TOKENS: "32",
  });
  await system.ready("prefill", 2);
  await system.ready("decode", 2);
});
afterAll(async () => {
  await truth[Symbol.asyncDispose]();
  expect(await system.stop()).toBe(0);
});

/** A prompt long enough that its prefill takes many chunks; different numbers give different prompts, so no cache helps. */
function longPrompt(number: number, words: number): string {
  return Array.from({ length: words }, (_, i) => `item ${number} is ${(i * 7919 + number * 104729) % 997}`).join(", ");
}

/** Tokens of a stream that is cut: far more than arrive before the fault takes effect. */
const LONG = 400;

const body = (prompt: string, tokens: number) => ({
  model: "nano",
  prompt,
  temperature: 0,
  max_tokens: tokens,
  min_tokens: tokens,
});

const run = (prompt: string, tokens: number, onChunk?: (answer: Answer) => void | Promise<void>) =>
  stream(system.url, "/v1/completions", body(prompt, tokens), onChunk ? { onChunk } : {});

const sum = (samples: ReadonlyMap<string, number>) => [...samples.values()].reduce((a, b) => a + b, 0);

/** Process of each decode worker. */
async function decodePids(): Promise<ReadonlyMap<string, number>> {
  return new Map((await system.ready("decode", 2)).map((rank) => [rank.workerId, rank.pid]));
}

/** A prompt whose prefill was met at work: pages of it have arrived at a decode rank, and there are more to come. */
interface Caught {
  readonly prompt: string;
  readonly answer: Promise<Answer>;
  /** Of the prefill rank. */
  readonly pid: number;
}

/**
 * Sends prompts until one's prefill is met in mid transfer, and sends the prefill rank a signal there. A prefill that ends
 * before it is met, or before the signal, is followed by another prompt.
 */
async function catchPrefill(number: number, signal: "SIGKILL" | "SIGSTOP"): Promise<Caught> {
  const ranks = await system.ready("prefill", 2);
  for (let tried = 0; tried < 10; tried++) {
    const prompt = longPrompt(number + 100 * tried, 150);
    const before = await received();
    let over = false;
    const answer = run(prompt, 24, () => {
      over = true;
    });
    void answer.catch(() => {}).finally(() => (over = true));
    for (let victim: RankStatus | null = null; !over; ) {
      for (const rank of ranks) {
        if (victim === null && sum(await system.metric(rank.healthUrl, "margay_worker_requests")) > 0) victim = rank;
      }
      if (victim !== null && (await received()) > before && !over) {
        process.kill(victim.pid, signal);
        return { prompt, answer, pid: victim.pid };
      }
    }
    expect((await answer).error).toBeNull();
  }
  throw new Error("no prefill was met at work");
}

async function received(): Promise<number> {
  let bytes = 0;
  for (const rank of await system.ranks()) {
    if (rank.role === "decode" && rank.state === "ready")
      bytes += sum(await system.metric(rank.healthUrl, "margay_kv_transfer_bytes_total"));
  }
  return bytes;
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

describe("a worker that is killed", () => {
  test("prefill, after a chunk arrived at the decode rank and before it was done: the text is the same", async () => {
    const { prompt, pid, answer: faulty } = await catchPrefill(1, "SIGKILL");
    await waitFor("the process to be gone", () => (alive(pid) ? null : true), 15_000);
    const answer = await faulty;
    expect(answer.error).toBeNull();
    expect(answer.finish).toBe("length");
    await system.ready("prefill", 2);
    expect(answer.content).toBe(await truth.complete(prompt, 24));
    await expectNothingHeld(system);
  }, 180_000);

  test("decode, in the middle of a stream: no token is missing or doubled", async () => {
    const prompt = "Tell me a story about a fox.";
    const clean = await truth.complete(prompt, LONG);
    const pids = await decodePids();
    let killed: number | null = null;
    const answer = await run(prompt, LONG, (soFar) => {
      if (killed !== null || soFar.chunks < 10) return;
      expect(soFar.content.length).toBeLessThan(clean.length / 2);
      killed = pids.get(soFar.headers.get("x-margay-decode") ?? "") ?? null;
      process.kill(killed!, "SIGKILL");
    });
    expect(killed).not.toBeNull();
    expect(alive(killed!)).toBe(false);
    expect(answer.error).toBeNull();
    expect(answer.content).toBe(clean);
    expect(answer.usage?.completion_tokens).toBe(LONG);
    expect(answer.comments.at(-1)).toMatch(/x-margay-attempts: [2-9]/);
    await system.ready("decode", 2);
    await expectNothingHeld(system);
  }, 180_000);
});

describe("a worker that is stopped", () => {
  test("prefill, in mid transfer, woken after its pages were reused: it changes nobody's text", async () => {
    const { prompt, pid, answer: faulty } = await catchPrefill(2, "SIGSTOP");
    try {
      const answer = await faulty;
      expect(answer.error).toBeNull();
      const before = await received();
      // Others take the pages of the decode ranks, then the sleeper wakes while they are being read.
      const others = [3, 4, 5, 6].map((number) => longPrompt(number, 60));
      const running = others.map((other) => run(other, 60));
      await waitFor("the others to stream", async () => ((await received()) > before ? true : null), 30_000);
      process.kill(pid, "SIGCONT");
      const texts = (await Promise.all(running)).map((a) => a.content);
      await system.ready("prefill", 2);
      for (const [i, other] of others.entries()) expect((await run(other, 60)).content).toBe(texts[i]);
      expect(answer.content).toBe(await truth.complete(prompt, 24));
    } finally {
      if (alive(pid)) process.kill(pid, "SIGCONT");
    }
    await expectNothingHeld(system);
  }, 240_000);

  test("decode, in the middle of a stream: the stream goes on elsewhere, the sleeper's tokens are ignored", async () => {
    const prompt = "Tell me a story about a bear.";
    const clean = await truth.complete(prompt, LONG);
    const pids = await decodePids();
    let stopped: number | null = null;
    try {
      const answer = await run(prompt, LONG, (soFar) => {
        if (stopped !== null || soFar.chunks < 10) return;
        expect(soFar.content.length).toBeLessThan(clean.length / 2);
        stopped = pids.get(soFar.headers.get("x-margay-decode") ?? "") ?? null;
        process.kill(stopped!, "SIGSTOP");
      });
      expect(stopped).not.toBeNull();
      expect(answer.error).toBeNull();
      expect(answer.content).toBe(clean);
      expect(answer.comments.at(-1)).toMatch(/x-margay-attempts: [2-9]/);
    } finally {
      if (stopped !== null && alive(stopped)) process.kill(stopped, "SIGCONT");
    }
    await system.ready("decode", 2);
    await expectNothingHeld(system);
  }, 180_000);
});
