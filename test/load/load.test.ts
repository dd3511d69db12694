import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test } from "vitest";
import { systemClock } from "#service/clock.ts";
import { loadReport, percentiles, reportChart, reportText } from "../../control-plane/load/load-report.ts";
import { closedLoop, openLoop, replay } from "../../control-plane/load/load-request.ts";
import { runLoad } from "../../control-plane/load/load-run.ts";
import { readTrace } from "../../control-plane/simulate/trace-file.ts";

const fixture = (name: string): string => fileURLToPath(new URL(`../fixtures/traces/${name}`, import.meta.url));
const shape = { requests: 12, promptTokens: 20, maxTokens: 5 };

let server: Server | null = null;
afterEach(() => {
  server?.close();
  server?.closeAllConnections();
  server = null;
});

/** A server that answers with as many pieces as are asked for; every `failing`-th request fails. */
async function fakeServer(failing: number) {
  const seen = {
    requests: 0,
    running: 0,
    most: 0,
    bodies: [] as { messages: { content: string }[]; max_tokens: number }[],
  };
  server = createServer((request, response) => {
    let body = "";
    request.on("data", (bytes: Buffer) => (body += bytes.toString()));
    request.on("end", async () => {
      const parsed = JSON.parse(body);
      seen.bodies.push(parsed);
      seen.most = Math.max(seen.most, ++seen.running);
      const number = ++seen.requests;
      // The answers of those that came together overlap.
      await new Promise((resolve) => setImmediate(resolve));
      seen.running--;
      if (number % failing === 0) return void response.writeHead(503).end("{}");
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(': a comment\n\ndata: {"choices":[{"delta":{"role":"assistant"}}]}\n\n');
      for (let i = 0; i < parsed.max_tokens; i++) response.write('data: {"choices":[{"delta":{"content":"a"}}]}\n\n');
      response.end(
        `data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":${parsed.max_tokens}}}\n\ndata: [DONE]\n\n`,
      );
    });
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => server!.once("listening", resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return { seen, target: { url, model: "fake", apiKey: null, exact: false } };
}

const run = { requestMs: 15_000, clock: systemClock, onProgress: () => {} };
const goals = { ttftMs: 60_000, tpotMs: 60_000 };

test("a closed loop asks every request, never more at a time than there are clients, and tells failures apart", async () => {
  const { seen, target } = await fakeServer(4);
  const outcome = await runLoad({ ...run, target, requests: closedLoop(shape, "a"), clients: 3 });
  expect(seen.requests).toBe(12);
  expect(seen.most).toBeLessThanOrEqual(3);
  const report = loadReport(outcome, goals);
  expect(report).toMatchObject({ requests: 12, failed: 3, failures: { "status 503": 3 }, goodShare: 0.75 });
  expect(report.tokensPerSecond * report.seconds).toBeCloseTo(9 * 5, 6);
  expect(report.promptTokensPerSecond * report.seconds).toBeCloseTo(9 * 7, 6);
  expect(reportText(report)).toContain("3 x status 503");
  expect(reportChart(outcome)).toContain("<svg");
});

test("a stream that breaks off is a failure", async () => {
  server = createServer((_request, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.end('data: {"choices":[{"delta":{"content":"a"}}]}\n\n');
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => server!.once("listening", resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const target = { url, model: "fake", apiKey: null, exact: false };
  const { observations } = await runLoad({
    ...run,
    target,
    requests: closedLoop({ ...shape, requests: 1 }, "a"),
    clients: 1,
  });
  expect(observations[0]!.error).toContain("[DONE]");
});

test("an open loop's arrivals are as many a second as asked for, whatever the answers take", () => {
  const requests = openLoop({ ...shape, requests: 4_000 }, 50, "seed");
  expect(requests.at(-1)!.atMs! / 1000).toBeGreaterThan(72);
  expect(requests.at(-1)!.atMs! / 1000).toBeLessThan(88);
  expect(new Set(requests.map(({ prompt }) => prompt)).size).toBe(4_000);
});

describe("a trace", () => {
  test("of Mooncake's keeps its times, lengths and shared blocks", () => {
    const trace = readTrace(fixture("mooncake.jsonl"));
    const requests = replay(trace, { speed: 2, shrink: 10, requests: 10 }, "seed");
    expect(requests).toHaveLength(10);
    expect(requests.map(({ atMs }) => atMs)).toEqual(trace.slice(0, 10).map(({ atMs }) => atMs / 2));
    const length = (text: string): number => text.split(" ").length;
    for (const [i, { prompt, maxTokens }] of requests.entries()) {
      const { promptTokens, outputTokens, hashIds } = trace[i]!;
      // Each block is rounded by itself.
      expect(Math.abs(length(prompt) - promptTokens / 10)).toBeLessThan(1 + hashIds!.length / 2);
      expect(maxTokens).toBe(Math.max(1, Math.round(outputTokens / 10)));
    }
    // All begin with block 0, and differ after it.
    expect(requests[0]!.prompt.slice(0, 200)).toBe(requests[1]!.prompt.slice(0, 200));
    expect(requests[0]!.prompt).not.toBe(requests[1]!.prompt.slice(0, requests[0]!.prompt.length));
  });

  test("of Azure's is sent to a server at its times", async () => {
    const { seen, target } = await fakeServer(100);
    const requests = replay(readTrace(fixture("azure.csv")), { speed: 1000, shrink: 20, requests: 8 }, "seed");
    const { observations } = await runLoad({ ...run, target, requests, clients: 8 });
    expect(observations.filter(({ error }) => error === null)).toHaveLength(8);
    expect(seen.bodies.map(({ max_tokens }) => max_tokens).sort()).toEqual(
      requests.map(({ maxTokens }) => maxTokens).sort(),
    );
    for (const [i, { atMs }] of [...observations].sort((a, b) => a.atMs - b.atMs).entries())
      expect(atMs).toBeGreaterThanOrEqual(requests[i]!.atMs! - 1);
  });
});

test("percentiles are values that were observed, by the nearest rank", () => {
  const values = Array.from({ length: 200 }, (_, i) => 200 - i);
  expect(percentiles(values)).toEqual({ mean: 100.5, p50: 100, p90: 180, p95: 190, p99: 198, max: 200 });
  expect(percentiles([])).toBeNull();
  expect(percentiles([3])).toEqual({ mean: 3, p50: 3, p90: 3, p95: 3, p99: 3, max: 3 });
});

test("goodput counts requests that met both goals", () => {
  const one = { atMs: 0, error: null, promptTokens: 1, tokens: 3, ttftMs: 100, totalMs: 140, gapsMs: [20, 20] };
  const outcome = {
    observations: [one, { ...one, ttftMs: 300 }, { ...one, gapsMs: [20, 90] }, { ...one, error: "x" }],
    seconds: 2,
    latestMs: 0,
  };
  const report = loadReport(outcome, { ttftMs: 200, tpotMs: 50 });
  expect(report.goodput).toBe(0.5);
  expect(report.tpotMs).toMatchObject({ p50: 20, max: 55 });
  expect(report.itlMs).toMatchObject({ p50: 20, max: 90 });
});
