import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Answer, stream } from "../support/client.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";
import { openTruth, type Truth } from "../support/truth.ts";

/** The message bus goes away under running streams and comes back. */

let system: System;
let truth: Truth;

beforeAll(async () => {
  truth = await openTruth();
  system = await startSystem({ MARGAY_BACKEND: "ref" });
  await system.ready("prefill", 1);
  await system.ready("decode", 1);
});
afterAll(async () => {
  await truth[Symbol.asyncDispose]();
  expect(await system.stop()).toBe(0);
});

const PROMPT = "Tell me a story about an owl.";
const TOKENS = 1_500;

const natsPid = async () => Number(await readFile(join(system.stateFolder, "nats", "nats-server.pid"), "utf8"));

const run = (tokens: number, onChunk?: (answer: Answer) => void | Promise<void>) =>
  stream(
    system.url,
    "/v1/completions",
    { model: "nano", prompt: PROMPT, temperature: 0, max_tokens: tokens, min_tokens: tokens },
    onChunk ? { onChunk } : {},
  );

/** The control plane has noticed that the bus is away, or that it is back. */
const busIs = (connected: boolean) =>
  waitFor(
    `the bus to be ${connected ? "back" : "away"}`,
    async () => {
      const state = (await system.metric(system.url, "margay_bus_connected")).get("");
      return state === (connected ? 1 : 0) ? true : null;
    },
    30_000,
    system.log,
  );

test("nats-server is killed in mid stream and started again: the text is whole, nothing stays held", async () => {
  const expected = await truth.complete(PROMPT, TOKENS);
  const old = await natsPid();
  const reconnects = async () => (await system.metric(system.url, "margay_bus_reconnects_total")).get("") ?? 0;
  const before = await reconnects();
  let killed = false;
  const answer = await run(TOKENS, (soFar) => {
    if (killed || soFar.chunks < 10) return;
    expect(soFar.content.length).toBeLessThan(expected.length / 2);
    killed = true;
    process.kill(old, "SIGKILL");
  });
  expect(killed).toBe(true);
  await waitFor("the bus to be back", async () => ((await reconnects()) > before ? true : null), 30_000, system.log);
  expect(await natsPid()).not.toBe(old);
  expect(answer.error).toBeNull();
  expect(answer.content).toBe(expected);
  await system.ready("decode", 1);
  await expectNothingHeld(system);
}, 180_000);

test("nats-server is stopped for some seconds in mid stream: the stream goes on when it wakes", async () => {
  const expected = await truth.complete(PROMPT, TOKENS);
  const pid = await natsPid();
  let stopped = false;
  const answer = await run(TOKENS, async (soFar) => {
    if (stopped || soFar.chunks < 10) return;
    expect(soFar.content.length).toBeLessThan(expected.length / 2);
    stopped = true;
    process.kill(pid, "SIGSTOP");
    try {
      await busIs(false);
    } finally {
      process.kill(pid, "SIGCONT");
    }
  });
  expect(stopped).toBe(true);
  await busIs(true);
  expect(answer.error).toBeNull();
  expect(answer.content).toBe(expected);
  await system.ready("prefill", 1);
  await system.ready("decode", 1);
  await expectNothingHeld(system);
  expect((await run(8)).error).toBeNull();
}, 180_000);
