import { expect, test } from "vitest";
import { startHealthServer } from "#service/health-server.ts";
import { createMetrics } from "#service/metrics.ts";

test("liveness, readiness with its checks, and metrics", async () => {
  const metrics = createMetrics({ processMetrics: false });
  metrics.count("margay_streams_resumed_total", {});
  let connected = false;
  await using server = await startHealthServer({
    host: "127.0.0.1",
    port: 0,
    readiness: () => ({ ready: connected, checks: { engine: true, bus: connected } }),
    metrics,
  });
  const get = async (path: string, init?: RequestInit) => {
    const response = await fetch(server.url + path, init);
    return { status: response.status, type: response.headers.get("content-type"), text: await response.text() };
  };
  expect((await get("/livez")).status).toBe(200);
  expect(await get("/readyz")).toMatchObject({
    status: 503,
    text: '{"status":"not ready","checks":{"engine":true,"bus":false}}',
  });
  connected = true;
  expect((await get("/readyz?verbose")).status).toBe(200);
  const scraped = await get("/metrics");
  expect(scraped.type).toBe(metrics.contentType);
  expect(scraped.text).toContain("margay_streams_resumed_total 1");
  expect((await get("/")).status).toBe(404);
  expect((await get("/livez", { method: "POST", body: "x" })).status).toBe(405);
});

test("a scrape whose collection fails is a 500, and the next one may succeed", async () => {
  const metrics = createMetrics({ processMetrics: false });
  let broken = true;
  metrics.onCollect(() => {
    if (broken) throw new Error("engine gone");
  });
  await using server = await startHealthServer({
    host: "127.0.0.1",
    port: 0,
    readiness: () => ({ ready: true, checks: {} }),
    metrics,
  });
  expect((await fetch(`${server.url}/metrics`)).status).toBe(500);
  broken = false;
  expect((await fetch(`${server.url}/metrics`)).status).toBe(200);
});

test("a port in use is one sentence that names the setting", async () => {
  const metrics = createMetrics({ processMetrics: false });
  const options = { host: "127.0.0.1", readiness: () => ({ ready: true, checks: {} }), metrics };
  await using first = await startHealthServer({ ...options, port: 0 });
  const port = Number(new URL(first.url).port);
  await expect(startHealthServer({ ...options, port })).rejects.toThrow(
    `Port ${port} of 127.0.0.1 is in use; set MARGAY_HEALTH_PORT or MARGAY_HEALTH_HOST.`,
  );
});
