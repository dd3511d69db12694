import { once } from "node:events";
import { connect } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Answer, stream } from "../support/client.ts";
import { freePort, type KvProxy, startKvProxy } from "../support/kv-proxy.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";
import { openTruth, type Truth } from "../support/truth.ts";

/** Frames of the KV connection, damaged on their way or sent again by somebody who kept them. */

let system: System;
let proxy: KvProxy;
let kvPort: number;
let truth: Truth;

const TOKENS = 16;

beforeAll(async () => {
  truth = await openTruth();
  kvPort = await freePort();
  proxy = await startKvProxy({ port: kvPort });
  system = await startSystem({
    MARGAY_BACKEND: "ref",
    MARGAY_KV_TRANSPORT: "tcp",
    MARGAY_KV_PORT: String(kvPort),
    MARGAY_KV_ADVERTISE: `127.0.0.1:${proxy.port}`,
  });
  await system.ready("prefill", 1);
  await system.ready("decode", 1);
});
afterAll(async () => {
  await truth[Symbol.asyncDispose]();
  await proxy.close();
  expect(await system.stop()).toBe(0);
});

const decodeRank = async () => (await system.ready("decode", 1))[0]!;

async function refused(): Promise<ReadonlyMap<string, number>> {
  const causes = new Map<string, number>();
  for (const [labels, count] of await system.metric((await decodeRank()).healthUrl, "margay_kv_frames_refused_total")) {
    causes.set(/cause="([a-z_]+)"/.exec(labels)?.[1] ?? labels, count);
  }
  return causes;
}

const total = (causes: ReadonlyMap<string, number>) => [...causes.values()].reduce((a, b) => a + b, 0);

/** A prompt of about 200 tokens that no cache knows. */
const prompt = (number: number) => Array.from({ length: 60 }, (_, i) => `n${number} ${(i * 37) % 11}`).join(" ");

const run = (text: string): Promise<Answer> =>
  stream(system.url, "/v1/completions", {
    model: "nano",
    prompt: text,
    temperature: 0,
    max_tokens: 16,
    min_tokens: 16,
  });

async function expectRight(answer: Answer, text: string): Promise<void> {
  expect(answer.error).toBeNull();
  expect(answer.content).toBe(await truth.complete(text, TOKENS));
}

describe("damage on the way", () => {
  test.each([
    ["in a page's bytes", 5_000],
    ["in a later page", 60_000],
  ])("a flipped bit %s is refused and counted, and the request still answered right", async (_where, at) => {
    proxy.reset();
    const before = await refused();
    const faults = proxy.carriedOut();
    proxy.arm({ kind: "flip", at });
    const text = prompt(at);
    const answer = await run(text);
    expect(proxy.carriedOut()).toBe(faults + 1);
    await expectRight(answer, text);
    expect(total(await refused())).toBeGreaterThan(total(before));
    await expectNothingHeld(system);
  });

  test("every bit position of a frame's header is covered: flips near the start never pass", async () => {
    for (const at of [3, 9, 70, 100, 140, 180, 230]) {
      proxy.reset();
      const faults = proxy.carriedOut();
      proxy.arm({ kind: "flip", at });
      const text = prompt(1_000 + at);
      const answer = await run(text);
      expect(proxy.carriedOut()).toBe(faults + 1);
      await expectRight(answer, text);
    }
    await expectNothingHeld(system);
  });

  test("a connection cut in mid page is opened again, and the request still answered right", async () => {
    proxy.reset();
    const faults = proxy.carriedOut();
    proxy.arm({ kind: "cut", at: 30_000 });
    const text = prompt(2);
    const answer = await run(text);
    expect(proxy.carriedOut()).toBe(faults + 1);
    await expectRight(answer, text);
    await expectNothingHeld(system);
  });
});

describe("frames sent again by somebody who kept them", () => {
  /** Sends recorded bytes to the decode rank and waits until it has closed or answered everything. */
  async function replay(bytes: Buffer): Promise<void> {
    const socket = connect(kvPort, "127.0.0.1");
    socket.on("error", () => {});
    socket.resume();
    await once(socket, "connect");
    socket.end(bytes);
    await once(socket, "close");
  }

  async function recordOne(number: number): Promise<{ readonly text: string; readonly bytes: Buffer }> {
    proxy.reset();
    const text = prompt(number);
    expect((await run(text)).error).toBeNull();
    const bytes = proxy.recorded();
    expect(bytes.length).toBeGreaterThan(10_000);
    return { text, bytes };
  }

  test("a used handle is refused as stale, and what was cached is not touched", async () => {
    const { text, bytes } = await recordOne(3);
    const before = (await refused()).get("stale_handle") ?? 0;
    await replay(bytes);
    await waitFor(
      "the frames to be refused",
      async () => (((await refused()).get("stale_handle") ?? 0) > before ? true : null),
      15_000,
    );
    await expectRight(await run(text), text);
    await expectNothingHeld(system);
  });

  test("an epoch that has ended is refused", async () => {
    const { bytes } = await recordOne(4);
    const old = await decodeRank();
    process.kill(old.pid, "SIGKILL");
    await waitFor(
      "a new epoch",
      async () =>
        (await system.ranks()).some((r) => r.role === "decode" && r.state === "ready" && r.pid !== old.pid)
          ? true
          : null,
      60_000,
    );
    await replay(bytes);
    await waitFor(
      "the connection to be refused",
      async () => (((await refused()).get("stale_epoch") ?? 0) > 0 ? true : null),
      15_000,
    );
    const text = prompt(5);
    await expectRight(await run(text), text);
    await expectNothingHeld(system);
  });

  test("noise on the port is refused and harms nobody", async () => {
    const before = total(await refused());
    await replay(Buffer.from("GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20)));
    await waitFor("the noise to be refused", async () => (total(await refused()) > before ? true : null), 15_000);
    const text = prompt(6);
    await expectRight(await run(text), text);
  });
});
