import { connect } from "node:net";
import { text } from "node:stream/consumers";
import { describe, expect, test } from "vitest";
import { ErrorResponse, ModelListResponse } from "../../control-plane/gateway/response-schema.ts";
import { FakeClock } from "../support/fake-clock.ts";
import { answering } from "../support/fake-flow.ts";
import { eventually, nanoModel, readStream, startHarness } from "../support/gateway-harness.ts";

const { tokenizer } = await nanoModel();
const HELLO = tokenizer.encode("Hello you.");
const idle = answering(HELLO);

describe("paths and methods", () => {
  test("an unknown path is 404, another method 405 with Allow, both in OpenAI's form", async () => {
    await using harness = await startHarness(idle);
    const missing = await fetch(`${harness.url}/v1/nothing`);
    expect(missing.status).toBe(404);
    expect(ErrorResponse.parse(await missing.json()).error.code).toBe("not_found");
    expect(missing.headers.get("x-request-id")).toMatch(/^req_/);
    for (const [method, path, allow] of [
      ["GET", "/v1/chat/completions", "POST, OPTIONS"],
      ["DELETE", "/v1/models", "GET, HEAD, OPTIONS"],
      ["PUT", "/v1/models/nano", "GET, HEAD, OPTIONS"],
    ] as const) {
      const response = await fetch(`${harness.url}${path}`, { method });
      expect(response.status).toBe(405);
      expect(response.headers.get("allow")).toBe(allow);
      expect(ErrorResponse.parse(await response.json()).error.code).toBe("method_not_allowed");
    }
  });

  test("OPTIONS tells the methods, HEAD answers as GET without a body", async () => {
    await using harness = await startHarness(idle);
    const options = await fetch(`${harness.url}/v1/completions`, { method: "OPTIONS" });
    expect([options.status, options.headers.get("allow"), await options.text()]).toEqual([204, "POST, OPTIONS", ""]);
    const head = await fetch(`${harness.url}/v1/models`, { method: "HEAD" });
    expect([head.status, await head.text()]).toEqual([200, ""]);
  });

  test("a malformed URL is 400 in OpenAI's form", async () => {
    await using harness = await startHarness(idle);
    const response = await fetch(`${harness.url}/v1/models/%ff`);
    expect(response.status).toBe(400);
    expect(response.headers.get("x-request-id")).toMatch(/^req_/);
    ErrorResponse.parse(await response.json());
  });
});

describe("models and documents", () => {
  test("models are listed and found by name", async () => {
    await using harness = await startHarness(idle);
    const { data } = ModelListResponse.parse(await (await fetch(`${harness.url}/v1/models`)).json());
    expect(data).toEqual([
      { id: "nano", object: "model", created: harness.model.created, owned_by: "margay", max_model_len: 4096 },
    ]);
    expect(await (await fetch(`${harness.url}/v1/models/nano`)).json()).toEqual(data[0]);
    const missing = await fetch(`${harness.url}/v1/models/org/none`);
    expect(missing.status).toBe(404);
    expect(ErrorResponse.parse(await missing.json()).error.code).toBe("model_not_found");
  });
});

describe("health", () => {
  test("livez is always 200, readyz follows the checks, metrics are text", async () => {
    let connected = true;
    const readiness = () => ({ ready: connected, checks: { bus: connected, models: true } });
    await using harness = await startHarness(idle, { readiness });
    expect((await fetch(`${harness.url}/readyz`)).status).toBe(200);
    connected = false;
    const response = await fetch(`${harness.url}/readyz`);
    expect(response.status).toBe(503);
    expect(await response.json()).toEqual({ status: "not ready", checks: { bus: false, models: true } });
    expect((await fetch(`${harness.url}/livez`)).status).toBe(200);
    const metrics = await fetch(`${harness.url}/metrics`);
    expect(metrics.headers.get("content-type")).toMatch(/^text\/plain/);
    expect(await metrics.text()).toContain("margay_http_requests_in_flight 1");
  });
});

describe("start and drain", () => {
  test("a port in use is one clear sentence", async () => {
    await using harness = await startHarness(idle);
    const port = Number(new URL(harness.url).port);
    await expect(startHarness(idle, { config: { port } })).rejects.toThrow(
      `Port ${port} of 127.0.0.1 is in use; set MARGAY_PORT to another one.`,
    );
  });

  test("drain lets a running stream finish and accepts nothing new", async () => {
    const gate = Promise.withResolvers<void>();
    await using harness = await startHarness(async (call) => {
      call.tokens(HELLO.slice(0, 1));
      await call.orAborted(gate.promise);
      call.tokens(HELLO.slice(1));
      return undefined;
    });
    const response = await harness.chat({ stream: true });
    let drained = false;
    const draining = harness.gateway.drain(60_000).then(() => {
      drained = true;
    });
    await expect(harness.chat()).rejects.toThrow();
    expect(drained).toBe(false);
    gate.resolve();
    const { done, events } = await readStream(response);
    expect(done).toBe(true);
    expect(events.length).toBeGreaterThan(2);
    await draining;
    expect(harness.flow.calls).toHaveLength(1);
  });

  test("a request that arrives on a busy connection while draining is 503 with Connection: close", async () => {
    const gate = Promise.withResolvers<void>();
    await using harness = await startHarness(async (call) => {
      call.tokens(HELLO);
      await call.orAborted(gate.promise);
      return undefined;
    });
    const body = '{"model":"nano","stream":true,"messages":[{"role":"user","content":"Hi"}]}';
    const request = `POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
    const socket = connect(Number(new URL(harness.url).port), "127.0.0.1");
    socket.write(request);
    await eventually(() => harness.flow.calls[0]?.delivered === HELLO.length);
    const draining = harness.gateway.drain(60_000);
    socket.write(request);
    await eventually(async () => (await harness.metrics.text()).includes('outcome="shutting_down"} 1'));
    gate.resolve();
    const [first, second] = (await text(socket)).split("HTTP/1.1 ").slice(1);
    expect(first).toMatch(/^200 [\s\S]*\[DONE\]/);
    expect(second).toMatch(/^503 [\s\S]*connection: close[\s\S]*"code":"shutting_down"/);
    await draining;
  });

  test("what still runs at the deadline ends with shutting_down", async () => {
    const clock = new FakeClock();
    await using harness = await startHarness(
      async (call) => {
        call.tokens(HELLO.slice(0, 1));
        return await call.untilAborted();
      },
      { clock },
    );
    const response = await harness.chat({ stream: true });
    const unary = harness.chat();
    await eventually(() => harness.flow.calls.length === 2 && harness.flow.calls[1]!.delivered === 1);
    const draining = harness.gateway.drain(5000);
    await clock.advance(5000);
    const { events, done } = await readStream(response);
    expect(ErrorResponse.parse(events.at(-1)).error.code).toBe("shutting_down");
    expect(done).toBe(false);
    expect((await unary).status).toBe(503);
    await draining;
  });

  test("a gateway that lingers still answers who comes, and sends each client elsewhere for the next time", async () => {
    await using harness = await startHarness(idle);
    const draining = harness.gateway.drain(60_000, 700);
    const response = await fetch(`${harness.url}/v1/models`);
    expect(response.status).toBe(200);
    expect(response.headers.get("connection")).toBe("close");
    await draining;
    await expect(fetch(`${harness.url}/v1/models`)).rejects.toThrow();
  });

  test("drain with nothing running ends at once, twice is once", async () => {
    await using harness = await startHarness(idle);
    expect((await harness.chat()).status).toBe(200);
    await Promise.all([harness.gateway.drain(60_000), harness.gateway.drain(60_000)]);
    await expect(fetch(`${harness.url}/livez`)).rejects.toThrow();
  });
});
