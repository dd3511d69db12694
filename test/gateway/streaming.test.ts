import { type ClientRequest, request as httpRequest, type IncomingMessage } from "node:http";
import { connect } from "node:net";
import { describe, expect, test } from "vitest";
import { MargayError } from "#protocol/errors.ts";
import { ChatChunkResponse, ErrorResponse } from "../../control-plane/gateway/response-schema.ts";
import { FakeClock } from "../support/fake-clock.ts";
import { answering, type FlowScript } from "../support/fake-flow.ts";
import { eventually, type Harness, nanoModel, readStream, startHarness } from "../support/gateway-harness.ts";

const { tokenizer } = await nanoModel();
const HELLO = tokenizer.encode("Hello you.");
const BODY = JSON.stringify({ model: "nano", stream: true, messages: [{ role: "user", content: "Hi" }] });

/** A script that waits at `gate` before it goes on. */
function gated(before: FlowScript, after: FlowScript) {
  const gate = Promise.withResolvers<void>();
  const script: FlowScript = async (call, index) => {
    await before(call, index);
    await call.orAborted(gate.promise);
    return await after(call, index);
  };
  return { script, open: gate.resolve };
}
const nothing: FlowScript = async () => undefined;
const waking: FlowScript = async (call) => {
  call.progress("waking", 0);
  return undefined;
};

/** Posts the streaming body; the response is not read until the test does. */
function openStream(url: string): { request: ClientRequest; response: Promise<IncomingMessage> } {
  const request = httpRequest(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
  });
  request.end(BODY);
  const response = new Promise<IncomingMessage>((resolve, reject) =>
    request.on("response", resolve).on("error", reject),
  );
  return { request, response };
}

async function outcomes(harness: Harness): Promise<string[]> {
  const lines = (await harness.metrics.text()).split("\n").filter((line) => line.startsWith("margay_requests_total{"));
  return lines.map((line) => /outcome="(\w+)"\} (\d+)/.exec(line)!.slice(1).join(" "));
}

describe("while a request waits", () => {
  test("after a second comments tell so, then one every five; the answer follows", async () => {
    const clock = new FakeClock();
    const { script, open } = gated(waking, answering(HELLO));
    await using harness = await startHarness(script, { clock });
    const pending = harness.chat({ stream: true });
    await eventually(() => harness.flow.calls.length === 1);
    await clock.advance(999);
    let headersCame = false;
    void pending.then(() => {
      headersCame = true;
    });
    await clock.advance(1);
    const response = await pending;
    expect(headersCame).toBe(true);
    expect(response.headers.get("x-margay-decode")).toBeNull();
    await clock.advance(10_000);
    open();
    const { comments, events, done } = await readStream(response);
    expect(comments.slice(0, -1)).toEqual(["margay waking 1 s", "margay waking 6 s", "margay waking 11 s"]);
    expect(comments.at(-1)).toContain("x-margay-decode: d-1");
    expect(events.map((event) => ChatChunkResponse.parse(event).choices[0]!.delta.content ?? "").join("")).toBe(
      "Hello you.",
    );
    expect(done).toBe(true);
  });

  test("an early failure is a proper HTTP status", async () => {
    await using harness = await startHarness(async () => {
      throw new MargayError("queue_full", "1000 requests are waiting.", { retryAfterMs: 2500 });
    });
    for (const stream of [true, false]) {
      const response = await harness.chat({ stream });
      expect(response.status).toBe(429);
      expect(response.headers.get("retry-after")).toBe("3");
      expect(ErrorResponse.parse(await response.json()).error).toMatchObject({
        ...{ code: "queue_full", type: "rate_limit_error", message: "1000 requests are waiting." },
      });
    }
    expect(await outcomes(harness)).toEqual(["queue_full 2"]);
  });

  test("a server's own failure shows its safe text alone", async () => {
    await using harness = await startHarness(async () => {
      throw new Error("secret detail");
    });
    const response = await harness.chat();
    expect(response.status).toBe(500);
    expect(await response.text()).not.toContain("secret");
  });

  test("a failure after the first comment is one error event, then the end", async () => {
    const clock = new FakeClock();
    const { script, open } = gated(waking, async () => {
      throw new MargayError("no_worker");
    });
    await using harness = await startHarness(script, { clock });
    const pending = harness.chat({ stream: true });
    await eventually(() => harness.flow.calls.length === 1);
    await clock.advance(1000);
    const response = await pending;
    open();
    const { events, done } = await readStream(response);
    expect(events).toHaveLength(1);
    expect(ErrorResponse.parse(events[0]).error.code).toBe("no_worker");
    expect(done).toBe(false);
    expect(await outcomes(harness)).toEqual(["no_worker 1"]);
  });
});

describe("waiting for workers", () => {
  test("comments name what is waited for: workers asked for, how far they are, how long it takes", async () => {
    const clock = new FakeClock();
    const { script, open } = gated(waking, answering(HELLO));
    const loading = { role: "prefill", wanted: 1, started: 1, ready: 0, phase: "loading" } as const;
    const ready = {
      role: "decode",
      wanted: 2,
      started: 2,
      ready: 2,
      phase: "ready",
      share: null,
      leftMs: null,
    } as const;
    const outlook = () => [{ ...loading, share: 0.62, leftMs: 2_400 }, ready];
    await using harness = await startHarness(script, { clock, outlook });
    const pending = harness.chat({ stream: true });
    await eventually(() => harness.flow.calls.length === 1);
    await clock.advance(1_000);
    const response = await pending;
    open();
    const { comments } = await readStream(response);
    expect(comments[0]).toBe("margay waking prefill 1/1 loading 62%, decode 2/2 ready; 1 s, about 3 s more");
  });

  test("x-margay-max-wait reaches the flow in milliseconds; what is no number of seconds is refused by name", async () => {
    await using harness = await startHarness(answering(HELLO));
    const ask = (value: string) =>
      harness.chat({}, { headers: { "content-type": "application/json", "x-margay-max-wait": value } });
    for (const [value, ms] of [
      ["2.5", 2_500],
      ["0", 0],
    ] as const) {
      expect((await ask(value)).status).toBe(200);
      expect(harness.flow.calls.at(-1)!.request.maxWaitMs).toBe(ms);
    }
    for (const value of ["-1", "soon", "1e3", "86401", ""]) {
      const response = await ask(value);
      expect(response.status, value).toBe(400);
      expect(ErrorResponse.parse(await response.json()).error.param).toBe("x-margay-max-wait");
    }
    expect((await harness.chat()).status).toBe(200);
    expect(harness.flow.calls.at(-1)!.request.maxWaitMs).toBeNull();
  });

  test("at the limit: 503 with retry-after, and in a stream that began one error event with retry_after", async () => {
    const clock = new FakeClock();
    const { script, open } = gated(waking, async () => {
      throw new MargayError("capacity_timeout", "No worker became available within 2 seconds.", {
        retryAfterMs: 4_200,
      });
    });
    await using harness = await startHarness(script, { clock });
    const pending = harness.chat({ stream: true });
    await eventually(() => harness.flow.calls.length === 1);
    await clock.advance(1_000);
    const response = await pending;
    open();
    const { events, done } = await readStream(response);
    expect(events).toHaveLength(1);
    expect(ErrorResponse.parse(events[0]).error).toMatchObject({ code: "capacity_timeout", retry_after: 5 });
    expect(done).toBe(false);
    const unary = await harness.chat();
    expect([unary.status, unary.headers.get("retry-after")]).toEqual([503, "5"]);
  });
});

describe("an error after streaming began", () => {
  test("is one error event after the tokens that came, then the end", async () => {
    await using harness = await startHarness(async (call) => {
      call.tokens(HELLO);
      throw new MargayError("worker_lost");
    });
    const { events, done } = await readStream(await harness.chat({ stream: true }));
    expect(ErrorResponse.parse(events.at(-1)).error).toMatchObject({ code: "worker_lost", type: "server_error" });
    const text = events.slice(0, -1).map((event) => ChatChunkResponse.parse(event).choices[0]!.delta.content ?? "");
    expect(text.join("")).toBe("Hello you.");
    expect(done).toBe(false);
  });

  test("of one choice ends the others", async () => {
    await using harness = await startHarness(async (call, index) => {
      if (index === 1) throw new MargayError("deadline_exceeded");
      return await call.untilAborted();
    });
    const response = await harness.chat({ n: 3 });
    expect(response.status).toBe(504);
    expect(harness.flow.calls.map((call) => call.ended)).toEqual([true, true, true]);
    expect(await outcomes(harness)).toEqual(["deadline_exceeded 1"]);
  });
});

describe("a client that leaves", () => {
  test.each(["destroys", "half-closes"] as const)("and %s its socket ends all its choices", async (how) => {
    await using harness = await startHarness(async (call) => {
      call.tokens(HELLO);
      return await call.untilAborted();
    });
    const body = BODY.replace("{", '{"n":2,');
    const socket = connect(Number(new URL(harness.url).port), "127.0.0.1");
    socket.on("error", () => {});
    socket.write(
      `POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    );
    socket.resume();
    await eventually(() => harness.flow.calls.length === 2 && harness.flow.calls.every((call) => call.delivered > 0));
    if (how === "destroys") socket.destroy();
    else socket.end();
    await eventually(() => harness.flow.calls.every((call) => call.ended));
    expect(harness.flow.calls.every((call) => call.request.signal.aborted)).toBe(true);
    await eventually(async () => (await outcomes(harness)).join() === "cancelled 1");
    await eventually(async () => (await harness.metrics.text()).includes("margay_http_requests_in_flight 0"));
    socket.destroy();
  });

  test("before anything was sent is counted once, and nothing is answered", async () => {
    await using harness = await startHarness((call) => call.untilAborted());
    const { request, response } = openStream(harness.url);
    response.catch(() => {});
    await eventually(() => harness.flow.calls.length === 1);
    request.destroy();
    await eventually(async () => (await outcomes(harness)).join() === "cancelled 1");
  });
});

describe("a slow reader", () => {
  /** Pours text at a client that does not read, until the flow hears that it is enough. */
  const pour: FlowScript = async (call) => {
    const many = new Int32Array(500).fill(HELLO[0]!);
    for (;;) {
      call.tokens(many);
      await call.orAborted(new Promise((resolve) => setImmediate(resolve)));
    }
  };

  test("is given up past the hard limit at once", async () => {
    const limits = { bufferedBytes: 50_000, graceMs: 1_000_000, mostBytes: 200_000 };
    await using harness = await startHarness(pour, { readerLimits: limits });
    const { request, response } = openStream(harness.url);
    (await response).pause();
    await eventually(() => harness.flow.calls[0]!.ended, 20_000);
    expect(await outcomes(harness)).toEqual(["cancelled 1"]);
    request.destroy();
  });

  test("above the soft limit is given up when its grace is over, not before", async () => {
    const clock = new FakeClock();
    const limits = { bufferedBytes: 50_000, graceMs: 10_000, mostBytes: 1_000_000_000 };
    let enough = Number.POSITIVE_INFINITY;
    await using harness = await startHarness(
      async (call) => {
        const many = new Int32Array(500).fill(HELLO[0]!);
        // More than kernel buffers take, then silence: the grace runs on the clock alone.
        while (call.delivered < enough) {
          call.tokens(many);
          await call.orAborted(new Promise((resolve) => setImmediate(resolve)));
          if (call.delivered * 5 > 20_000_000) enough = 0;
        }
        return await call.untilAborted();
      },
      { clock, readerLimits: limits },
    );
    const { request, response } = openStream(harness.url);
    (await response).pause();
    await eventually(() => enough === 0, 20_000);
    await clock.advance(9000);
    expect(harness.flow.calls[0]!.ended).toBe(false);
    await clock.advance(2000);
    await eventually(() => harness.flow.calls[0]!.ended);
    request.destroy();
  });
});

test("time to first token and time per token are observed once per request", async () => {
  await using harness = await startHarness(answering(HELLO));
  await readStream(await harness.chat({ stream: true }));
  const text = await harness.metrics.text();
  expect(text).toContain('margay_time_to_first_token_seconds_count{model="nano"} 1');
  expect(text).toContain('margay_time_per_output_token_seconds_count{model="nano"} 1');
  expect(text).toContain(`margay_generated_tokens_total{model="nano"} ${HELLO.length}`);
  expect(await outcomes(harness)).toEqual(["ok 1"]);
});

test("a request's deadline is its longest life from its arrival", async () => {
  const clock = new FakeClock();
  await using harness = await startHarness(nothing, { clock, config: { requestMs: 5000 } });
  await harness.chat();
  expect(harness.flow.calls[0]!.request.deadlineMs).toBe(clock.now() + 5000);
});
