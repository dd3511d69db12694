import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { TimelineResponse } from "#protocol/timeline.ts";
import { type Answer, stream } from "../support/client.ts";
import { type OtlpReceiver, startOtlpReceiver } from "../support/otlp-receiver.ts";
import { spanChart } from "../support/span-chart.ts";
import { runCli, type System, startSystem, waitFor } from "../support/system.ts";

/** One request whose decode process is killed: a collector has its whole way in one trace, and so has its timeline. */

const PICTURE = fileURLToPath(new URL("../../docs/trace-of-a-migrated-request.svg", import.meta.url));
const TRACE = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER = "00f067aa0ba902b7";
const PROMPT = "a secret that no trace may hold, said many times: ".repeat(12);
const TOKENS = 200;

let collector: OtlpReceiver;
let system: System;
let answer: Answer;
let requestId: string;

beforeAll(async () => {
  collector = await startOtlpReceiver();
  system = await startSystem({
    MARGAY_BACKEND: "ref",
    MARGAY_DECODE: "2..2",
    MARGAY_STEP_TOKENS: "32",
    MARGAY_TRACE_ENDPOINT: collector.url,
    MARGAY_TRACE_SAMPLE: "0",
  });
  await system.ready("prefill", 1);
  const pids = new Map<string, number>((await system.ready("decode", 2)).map(({ workerId, pid }) => [workerId, pid]));
  let killed = false;
  answer = await stream(
    system.url,
    "/v1/completions",
    { model: "nano", prompt: PROMPT, temperature: 0, max_tokens: TOKENS, min_tokens: TOKENS },
    {
      headers: { traceparent: `00-${TRACE}-${CALLER}-01` },
      onChunk: ({ chunks, headers }) => {
        if (killed || chunks < 3) return;
        killed = true;
        process.kill(pids.get(headers.get("x-margay-decode")!)!, "SIGKILL");
      },
    },
  );
  expect(killed).toBe(true);
  requestId = answer.headers.get("x-request-id")!;
}, 150_000);

afterAll(async () => {
  expect(await system?.stop()).toBe(0);
  await collector[Symbol.asyncDispose]();
}, 90_000);

test("one trace tells of it, from the caller's span to the last token", async () => {
  expect(answer.error).toBeNull();
  expect(answer.usage?.completion_tokens ?? TOKENS).toBe(TOKENS);
  const named = (name: string) => collector.spans.filter((span) => span.name === name);
  await waitFor(
    "the last spans of all processes",
    () => (named("text_completion nano").length === 1 && named("generate tokens").length >= 1 ? true : null),
    30_000,
    () => collector.spans.map(({ name }) => name).join("\n"),
  );
  expect([...new Set(collector.spans.map(({ traceId }) => traceId))]).toEqual([TRACE]);
  expect(new Set(collector.spans.map(({ service }) => service))).toEqual(
    new Set(["margay-control-plane", "margay-prefill", "margay-decode"]),
  );

  const root = named("text_completion nano")[0]!;
  expect(root.parentSpanId).toBe(CALLER);
  expect(root.attributes.get("gen_ai.operation.name")).toBe("text_completion");
  expect(root.attributes.get("gen_ai.request.model")).toBe("nano");
  expect(root.attributes.get("gen_ai.response.id")).toBe(requestId);
  expect(root.attributes.get("gen_ai.usage.output_tokens")).toBe(String(TOKENS));

  const attempts = collector.spans.filter(({ name }) => name.startsWith("attempt"));
  const [first, second] = attempts.sort((a, b) => (a.startNs < b.startNs ? -1 : 1));
  expect(attempts.length).toBeGreaterThanOrEqual(2);
  expect(first!.error).toBe("worker_lost");
  expect(first!.links).toEqual([]);
  expect(second!.links).toEqual([first!.spanId]);
  expect(attempts.at(-1)!.error).toBeNull();

  // Every span hangs below the caller's, and the last token comes before the end of the request.
  const parents = new Map(collector.spans.map(({ spanId, parentSpanId }) => [spanId, parentSpanId]));
  for (const span of collector.spans) {
    let at: string | null | undefined = span.spanId;
    for (let up = 0; at !== CALLER && up < 5; up++) at = parents.get(at!);
    expect(at, span.name).toBe(CALLER);
  }
  expect(root.endNs).toBeGreaterThanOrEqual(attempts.at(-1)!.endNs);
  const phases = ["queue", "placement", "reserve", "prefill", "transfer", "decode"];
  for (const phase of phases) expect(named(phase).length, phase).toBeGreaterThanOrEqual(2);
  expect(
    named("compute prompt").some(({ events }) => events.length > 1 && events.every((event) => event === "chunk")),
  ).toBe(true);
  // What the killed rank had not sent yet died with it.
  expect(named("take pages").length).toBeGreaterThanOrEqual(1);
  for (const body of collector.bodies) expect(body).not.toContain("secret");
}, 60_000);

test("it can be drawn: every span once, the two placements linked", () => {
  const drawn = spanChart("A request whose decode process was killed", collector.spans);
  expect(drawn.match(/class="span"/g)).toHaveLength(collector.spans.length);
  expect(drawn.match(/class="link"/g)!.length).toBeGreaterThanOrEqual(1);
  if (process.env.WRITE_DOCS === "1") writeFileSync(PICTURE, drawn);
});

test("its timeline tells which ranks, why, what each phase took, and the retry", async () => {
  const response = await fetch(`${system.url}/v1/requests/${requestId}/timeline`);
  expect(response.status).toBe(200);
  const text = await response.text();
  expect(text).not.toContain("secret");
  const timeline = TimelineResponse.parse(JSON.parse(text));
  expect(timeline).toMatchObject({ id: requestId, outcome: "ok", trace_id: TRACE, generated_tokens: TOKENS });
  expect(timeline.retries).toBeGreaterThanOrEqual(1);
  const [first, last] = [timeline.attempts[0]!, timeline.attempts.at(-1)!];
  expect(first.outcome).toBe("worker_lost");
  expect(last.outcome).toBe("ok");
  expect(first.decode!.rank).not.toBe(last.decode!.rank);
  expect(first.decode!.out_of).toBe(2);
  expect(last.phases.map(({ phase }) => phase)).toEqual(["queue", "reserve", "prefill", "transfer", "decode"]);
  expect(last.transfer!.bytes).toBeGreaterThan(0);
  expect(timeline.first_token_ms).toBeLessThan(timeline.total_ms!);
  expect(last.prefill!.cached_tokens).toBeGreaterThan(0);

  const environment = {
    PATH: process.env.PATH ?? "",
    HOME: process.env.HOME ?? "",
    MARGAY_STATE_DIR: system.stateFolder,
  };
  const { code, stdout } = await runCli(["explain", requestId], environment);
  expect(code).toBe(0);
  expect(stdout).toContain("worker_lost");
  expect(stdout).toContain(last.decode!.rank);
}, 60_000);

test("a request that nobody knows has no timeline", async () => {
  expect((await fetch(`${system.url}/v1/requests/req_0/timeline`)).status).toBe(404);
});

test("what its caller does not want traced is not", async () => {
  const before = collector.spans.length;
  const headers = { traceparent: `00-${"a".repeat(32)}-${CALLER}-00` };
  const quiet = await stream(
    system.url,
    "/v1/completions",
    { model: "nano", prompt: "hello", max_tokens: 4 },
    { headers },
  );
  expect(quiet.error).toBeNull();
  const loud = { traceparent: `00-${"b".repeat(32)}-${CALLER}-01` };
  await stream(system.url, "/v1/completions", { model: "nano", prompt: "hello", max_tokens: 4 }, { headers: loud });
  const traces = () => new Set(collector.spans.slice(before).map(({ traceId }) => traceId));
  await waitFor("spans of the second request", () => (traces().has("b".repeat(32)) ? true : null), 30_000);
  expect(traces()).not.toContain("a".repeat(32));
}, 60_000);
