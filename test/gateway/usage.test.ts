import { describe, expect, test } from "vitest";
import { ErrorResponse, UsageListResponse } from "../../control-plane/gateway/response-schema.ts";
import { answering } from "../support/fake-flow.ts";
import { eventually, nanoModel, startHarness } from "../support/gateway-harness.ts";
import { KeysFile, keyFor, tenancyOf } from "../support/keys-file.ts";

const { tokenizer } = await nanoModel();
const TOKENS = tokenizer.encode("Hello you.");
const hello = answering(TOKENS);
const [acme, other, admin] = [keyFor("acme"), keyFor("other"), keyFor("other", { admin: true })];
const prices = { currency: "USD", models: { nano: { input: "1", output: "2" } } };
const content = (limits = {}) => ({
  tenants: { acme: { limits }, other: {} },
  keys: [acme.line, other.line, admin.line],
  prices,
});
const as = ({ key }: { readonly key: string }) => ({
  headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
});

describe("GET /v1/usage", () => {
  test("tells a tenant what it used and what that cost, and an admin what everybody did", async () => {
    await using file = await KeysFile.with(content());
    await using harness = await startHarness(hello, { tenancy: await tenancyOf(file) });
    const usage = async (who: { readonly key: string }, query = "") =>
      UsageListResponse.parse(await (await fetch(`${harness.url}/v1/usage${query}`, as(who))).json());
    const answers = [];
    for (const stream of [false, true]) {
      const answer = await harness.chat(
        { stream, stream_options: stream ? { include_usage: true } : undefined },
        as(acme),
      );
      answers.push(await answer.text());
    }
    await harness.chat({}, as(other));
    const told = (JSON.parse(answers[0]!) as { usage: { prompt_tokens: number } }).usage;
    await eventually(async () => (await usage(acme)).data[0]?.requests === 2);
    const [row, ...rest] = (await usage(acme)).data;
    expect(rest).toEqual([]);
    const micros = 2 * (told.prompt_tokens + 2 * TOKENS.length);
    expect(row).toMatchObject({
      ...{ tenant: "acme", model: "nano", failed_requests: 0, currency: "USD" },
      ...{ input_tokens: 2 * told.prompt_tokens, output_tokens: 2 * TOKENS.length },
      ...{ prefill_gpu_seconds: 0.004, decode_gpu_seconds: 0.008 },
      ...{ cost: `0.${String(micros).padStart(6, "0")}000000`, cost_micros: micros },
    });
    expect((await usage(admin)).data.map(({ tenant }) => tenant).sort()).toEqual(["acme", "other"]);
    expect((await usage(admin, "?tenant=acme")).data).toHaveLength(1);
    expect((await usage(acme, "?tenant=other")).data).toHaveLength(1);
    expect((await usage(acme, "?from=2020-01-01&to=2020-01-31")).data).toEqual([]);
    const csv = await fetch(`${harness.url}/v1/usage?format=csv`, as(acme));
    expect(csv.headers.get("content-type")).toContain("text/csv");
    const [head, line] = (await csv.text()).split("\r\n");
    expect(head!.split(",").slice(0, 4)).toEqual(["day", "tenant", "model", "requests"]);
    expect(line!.split(",").slice(1, 4)).toEqual(["acme", "nano", "2"]);
  });

  test("names what is wrong with a question", async () => {
    await using file = await KeysFile.with(content());
    await using harness = await startHarness(hello, { tenancy: await tenancyOf(file) });
    for (const [query, param] of [
      ["from=yesterday", "from"],
      ["to=2026-02-30", "to"],
      ["from=2026-03-01&to=2026-02-01", "to"],
      ["from=2020-01-01&to=2026-01-01", "to"],
      ["format=xml", "format"],
      ["from=2026-01-01&from=2026-01-02", "from"],
    ] as const) {
      const answer = await fetch(`${harness.url}/v1/usage?${query}`, as(acme));
      expect([query, answer.status]).toEqual([query, 400]);
      expect(ErrorResponse.parse(await answer.json()).error.param).toBe(param);
    }
    await using open = await startHarness(hello);
    expect((await fetch(`${open.url}/v1/usage`)).status).toBe(403);
  });
});

test("a budget that is used up: 429 insufficient_quota, which clients do not try again; others go on", async () => {
  await using file = await KeysFile.with(content({ monthlyBudget: "0.000030" }));
  await using harness = await startHarness(hello, { tenancy: await tenancyOf(file) });
  const statuses: number[] = [];
  for (let i = 0; i < 6; i++) {
    const answer = await harness.chat({}, as(acme));
    statuses.push(answer.status);
    const body = await answer.json();
    if (answer.status !== 429) continue;
    expect(answer.headers.get("x-should-retry")).toBe("false");
    const { error } = ErrorResponse.parse(body);
    expect(error).toMatchObject({ type: "insufficient_quota", code: "insufficient_quota" });
    expect(error.message).toMatch(
      /^The month's budget of 0\.00003 USD is used up; the next begins on \d{4}-\d\d-01\.$/,
    );
  }
  expect(statuses.at(0)).toBe(200);
  expect(statuses.at(-1)).toBe(429);
  expect((await harness.chat({}, as(other))).status).toBe(200);
  expect(await harness.metrics.text()).not.toContain("mgy-");
});

test("a client that leaves pays for what it got; a request that was refused pays nothing", async () => {
  await using file = await KeysFile.with(content());
  const tenancy = await tenancyOf(file);
  await using harness = await startHarness(
    async (call, index) => {
      call.progress("placed");
      if (index === 0) call.tokens([...TOKENS.slice(0, 2)]);
      return await call.untilAborted();
    },
    { tenancy },
  );
  const abort = new AbortController();
  const stream = await harness.chat({ stream: true }, { ...as(acme), signal: abort.signal });
  expect(stream.status).toBe(200);
  abort.abort();
  expect((await harness.chat({ max_tokens: -1 }, as(acme))).status).toBe(400);
  const rows = async () =>
    UsageListResponse.parse(await (await fetch(`${harness.url}/v1/usage`, as(acme))).json()).data;
  await eventually(async () => (await rows()).length === 1);
  expect((await rows())[0]).toMatchObject({ requests: 1, failed_requests: 1, output_tokens: 2 });
});
