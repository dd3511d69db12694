import OpenAI, { toFile } from "openai";
import { describe, expect, test } from "vitest";
import { BatchResponse } from "../../control-plane/gateway/batches/batch-shapes.ts";
import { answering, type FlowCall, type FlowScript } from "../support/fake-flow.ts";
import { eventually, type Harness, nanoModel, startHarness } from "../support/gateway-harness.ts";
import { KeysFile, keyFor, tenancyOf } from "../support/keys-file.ts";
import { NatsServer } from "../support/nats-server.ts";

const { tokenizer } = await nanoModel();
const saying = (text: string) => answering(tokenizer.encode(text));
const CHAT = "/v1/chat/completions";
const ENDED = ["completed", "failed", "expired", "cancelled"];

interface Line {
  readonly id: string;
  readonly custom_id: string;
  readonly response: { readonly status_code: number; readonly request_id: string; readonly body: object } | null;
  readonly error: { readonly code: string; readonly message: string } | null;
}

const chatBody = { model: "nano", messages: [{ role: "user", content: "Hi" }] };
const lineOf = (custom_id: string, body: object = chatBody, url: string = CHAT) =>
  JSON.stringify({ custom_id, method: "POST", url, body });
const linesOf = (count: number) => Array.from({ length: count }, (_, i) => lineOf(`line-${i}`));

function clientOf(harness: Harness, apiKey = "none"): OpenAI {
  return new OpenAI({ baseURL: `${harness.url}/v1`, apiKey, maxRetries: 0 });
}

async function begin(client: OpenAI, lines: readonly string[], fields: Partial<OpenAI.BatchCreateParams> = {}) {
  const file = await client.files.create({
    purpose: "batch",
    file: await toFile(Buffer.from(lines.join("\n")), "in.jsonl"),
  });
  const asked = { input_file_id: file.id, endpoint: CHAT, completion_window: "24h", ...fields } as const;
  return await client.batches.create(asked);
}

async function ended(client: OpenAI, id: string): Promise<OpenAI.Batch> {
  let batch = await client.batches.retrieve(id);
  const began = performance.now();
  while (!ENDED.includes(batch.status)) {
    if (performance.now() - began > 150_000) throw new Error(`the batch is still ${JSON.stringify(batch)}`);
    // Asking takes a share of the very process that works on it.
    await new Promise((resolve) => setTimeout(resolve, 50));
    batch = await client.batches.retrieve(id);
  }
  return batch;
}

async function answersIn(client: OpenAI, file: string | null | undefined): Promise<readonly Line[]> {
  if (file === null || file === undefined) return [];
  const text = await (await client.files.content(file)).text();
  expect(text.endsWith("\n")).toBe(true);
  return text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Line);
}

const namesOf = (lines: readonly Line[]) => lines.map(({ custom_id }) => custom_id).sort();

describe("a batch", { timeout: 180_000 }, () => {
  test("is answered line by line, through an unmodified client, in OpenAI's form", async () => {
    await using it = await startHarness(saying("Hello you.</longcat_s>"));
    const client = clientOf(it);
    const lines = [
      ...linesOf(9),
      lineOf("wrong", { ...chatBody, temperature: 9 }),
      lineOf("stream", { ...chatBody, stream: true }),
    ];
    const begun = await begin(client, lines, { metadata: { of: "test" } });
    expect(begun).toMatchObject({ object: "batch", status: "validating", metadata: { of: "test" }, endpoint: CHAT });
    const batch = await ended(client, begun.id);
    expect(batch).toMatchObject({
      status: "completed",
      request_counts: { total: 11, completed: 9, failed: 2 },
    });
    const { _request_id, ...told } = batch as typeof batch & { _request_id: string };
    BatchResponse.parse(told);

    const answers = await answersIn(client, batch.output_file_id);
    expect(namesOf(answers)).toEqual(Array.from({ length: 9 }, (_, i) => `line-${i}`));
    for (const { id, response, error } of answers) {
      expect(id).toMatch(/^batch_req_/);
      expect(error).toBeNull();
      expect(response).toMatchObject({
        ...{ status_code: 200, request_id: expect.stringMatching(/^req_[0-9a-f]{24}$/) },
        body: { object: "chat.completion", choices: [{ message: { content: "Hello you." }, finish_reason: "stop" }] },
      });
    }
    const failures = await answersIn(client, batch.error_file_id);
    const params = Object.fromEntries(failures.map((one) => [one.custom_id, one.response]));
    expect(params).toMatchObject({
      wrong: { status_code: 400, body: { error: { param: "temperature" } } },
      stream: { status_code: 400, body: { error: { param: "stream" } } },
    });
    expect(
      it.flow.calls.every(({ request }) => request.share.urgency === -2 && request.generation.priority === -1000),
    ).toBe(true);
    expect((await client.batches.list()).data.map(({ id }) => id)).toEqual([begun.id]);
    expect(await client.files.retrieve(batch.output_file_id!)).toMatchObject({
      purpose: "batch_output",
      status: "processed",
    });
  });

  test.each([
    ["/v1/completions", { model: "nano", prompt: "Hi" }, { object: "text_completion" }],
    ["/v1/responses", { model: "nano", input: "Hi" }, { object: "response", status: "completed" }],
  ] as const)("may ask %s", async (endpoint, body, answer) => {
    await using it = await startHarness(saying("Hello you.</longcat_s>"));
    const client = clientOf(it);
    const { id } = await begin(client, [lineOf("one", body, endpoint)], { endpoint });
    const { output_file_id } = await ended(client, id);
    expect(await answersIn(client, output_file_id)).toMatchObject([{ response: { status_code: 200, body: answer } }]);
  });

  test.each([
    ["no requests", [""], [{ code: "empty_file", line: null }]],
    ["a line that is no JSON", ["", "{", ...linesOf(1)], [{ code: "invalid_json_line", line: 2 }]],
    [
      "two lines of one name",
      [...linesOf(1), ...linesOf(1)],
      [{ code: "duplicate_custom_id", line: 2, param: "custom_id" }],
    ],
    [
      "another endpoint",
      [lineOf("a", chatBody, "/v1/completions")],
      [{ code: "mismatched_url", line: 1, param: "url" }],
    ],
    [
      "a line without body",
      [`{"custom_id":"a","method":"POST","url":"${CHAT}"}`],
      [{ code: "invalid_line", param: "body" }],
    ],
    [
      "a line longer than a request may be",
      [lineOf("a", { ...chatBody, user: "u".repeat(1_048_576) })],
      [{ code: "line_too_long" }],
    ],
  ])("with %s fails before anything is asked, and says which line", async (_name, lines, faults) => {
    await using it = await startHarness(saying("Hello</longcat_s>"));
    const client = clientOf(it);
    const batch = await ended(client, (await begin(client, lines)).id);
    expect(batch).toMatchObject({
      status: "failed",
      errors: { data: faults },
    });
    expect(Object.keys(batch).filter((name) => /^(output|error)_file_id$/.test(name))).toEqual([]);
    expect(it.flow.calls).toHaveLength(0);
  });

  test("waits for room and for its tenant's limits, and is answered all the same", async () => {
    const busy = new Set<number>();
    await using it = await startHarness(async (call, index) => {
      if (index % 3 === 0 && busy.size < 4) {
        busy.add(index);
        throw new (await import("#protocol/errors.ts")).MargayError("capacity_timeout");
      }
      return await saying("Hello</longcat_s>")(call, index);
    });
    const client = clientOf(it);
    const batch = await ended(client, (await begin(client, linesOf(12))).id);
    expect(busy.size).toBeGreaterThan(0);
    expect(batch.request_counts).toEqual({ total: 12, completed: 12, failed: 0 });
  });

  test("has no more lines under way than it may, and no more than that when it is large", async () => {
    let [now, most] = [0, 0];
    await using it = await startHarness(async (call, index) => {
      most = Math.max(most, ++now);
      try {
        return await saying("Hi</longcat_s>")(call, index);
      } finally {
        now--;
      }
    });
    const client = clientOf(it);
    const batch = await ended(client, (await begin(client, linesOf(60))).id);
    expect(batch.request_counts).toEqual({ total: 60, completed: 60, failed: 0 });
    expect(most).toBeLessThanOrEqual(4);
    expect(namesOf(await answersIn(client, batch.output_file_id))).toEqual(
      namesOf(linesOf(60).map((line) => JSON.parse(line) as Line)),
    );
  });

  test("that is cancelled keeps what was answered, and says of every other line that it was not", async () => {
    const held: FlowScript = async (call, index) =>
      index < 2 ? await saying("Hello</longcat_s>")(call, index) : await call.untilAborted();
    await using it = await startHarness(held);
    const client = clientOf(it);
    const { id } = await begin(client, linesOf(20));
    await eventually(async () => (await client.batches.retrieve(id)).request_counts?.completed === 2, 150_000);
    expect((await client.batches.cancel(id)).status).toBe("cancelling");
    const batch = await ended(client, id);
    expect(batch).toMatchObject({ status: "cancelled", request_counts: { total: 20, completed: 2, failed: 18 } });
    const unanswered = await answersIn(client, batch.error_file_id);
    expect(unanswered.every(({ response, error }) => response === null && error?.code === "batch_cancelled")).toBe(
      true,
    );
    const all = [...(await answersIn(client, batch.output_file_id)), ...unanswered];
    expect(namesOf(all)).toEqual(namesOf(linesOf(20).map((line) => JSON.parse(line) as Line)));
    expect((await client.batches.cancel(id)).status).toBe("cancelled");
    await eventually(() => it.flow.calls.every((call) => call.ended));
  });

  test("that its gateway leaves behind is gone on with by another, and no line is answered twice", async () => {
    await using server = await NatsServer.start();
    const [mine, theirs] = [await server.connect("control-plane"), await server.connect("control-plane")];
    let id = "";
    {
      await using one = await startHarness(
        async (call: FlowCall, index) =>
          index < 5 ? await saying("First.</longcat_s>")(call, index) : await call.untilAborted(),
        { bus: mine, gatewayId: "gw-one" },
      );
      const client = clientOf(one);
      id = (await begin(client, linesOf(40))).id;
      await eventually(async () => (await client.batches.retrieve(id)).request_counts?.completed === 5, 150_000);
    }
    await using two = await startHarness(saying("Second.</longcat_s>"), {
      ...{ bus: theirs, gatewayId: "gw-two" },
    });
    const client = clientOf(two);
    const batch = await ended(client, id);
    expect(batch).toMatchObject({ status: "completed", request_counts: { total: 40, completed: 40, failed: 0 } });
    const answers = await answersIn(client, batch.output_file_id);
    expect(namesOf(answers)).toEqual(namesOf(linesOf(40).map((line) => JSON.parse(line) as Line)));
    expect(answers.filter(({ response }) => JSON.stringify(response).includes("First."))).toHaveLength(5);
    expect(two.flow.calls).toHaveLength(35);
    for (const bus of [mine, theirs]) await bus.close(1_000);
  });

  test("ends with its key, and is found by its own tenant alone", async () => {
    const [acme, spare, other] = [keyFor("acme"), keyFor("acme"), keyFor("other")];
    const content = { tenants: { acme: {}, other: {} }, keys: [acme.line, spare.line, other.line] };
    await using file = await KeysFile.with(content);
    const keyring = await file.open();
    await using it = await startHarness(async (call) => await call.untilAborted(), {
      tenancy: await tenancyOf(file, { keyring }),
    });
    const client = clientOf(it, acme.key);
    const { id, input_file_id } = await begin(client, linesOf(6));
    await eventually(() => it.flow.calls.length === 4, 150_000);
    const stranger = clientOf(it, other.key);
    await expect(stranger.batches.retrieve(id)).rejects.toMatchObject({ status: 404, param: "batch_id" });
    await expect(stranger.batches.cancel(id)).rejects.toMatchObject({ status: 404, param: "batch_id" });
    await expect(stranger.files.content(input_file_id)).rejects.toMatchObject({ status: 404 });
    await expect(stranger.files.delete(input_file_id)).rejects.toMatchObject({ status: 404 });
    const asked = { input_file_id, endpoint: CHAT, completion_window: "24h" } as const;
    await expect(stranger.batches.create(asked)).rejects.toMatchObject({ status: 404, param: "input_file_id" });
    expect((await stranger.files.list()).data).toEqual([]);
    expect((await stranger.batches.list()).data).toEqual([]);

    await file.write({ ...content, keys: [spare.line, other.line] });
    await keyring.look();
    const rest = clientOf(it, spare.key);
    const batch = await ended(rest, id);
    expect(batch).toMatchObject({
      ...{ status: "failed", request_counts: { total: 6, completed: 0, failed: 6 } },
      errors: { data: [{ code: "invalid_api_key", message: "The API key was revoked." }] },
    });
    expect(namesOf(await answersIn(rest, batch.error_file_id))).toHaveLength(6);
  });

  test.each([
    [{ input_file_id: "file-none" }, 404, "input_file_id"],
    [{ endpoint: "/v1/embeddings" }, 400, "endpoint"],
    [{ completion_window: "1y" }, 400, "completion_window"],
    [{ completion_window: "999h" }, 400, "completion_window"],
    [{ metadata: { a: 1 } }, 400, "metadata.a"],
    [{ output_expires_after: { anchor: "created_at", seconds: 1 } }, 400, "output_expires_after.seconds"],
  ])("asked for with %o is refused by name", async (fields, status, param) => {
    await using it = await startHarness(saying("Hello</longcat_s>"));
    const wrong = begin(clientOf(it), linesOf(1), fields as never);
    await expect(wrong).rejects.toMatchObject({ status, param });
  });
});
