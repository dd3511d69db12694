import OpenAI from "openai";
import { describe, expect, test } from "vitest";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { ResponseResponse, ResponseStreamEvent } from "../../control-plane/gateway/responses/shapes.ts";
import { answering, type FlowCall, type FlowScript } from "../support/fake-flow.ts";
import { eventually, type Harness, nanoModel, startHarness } from "../support/gateway-harness.ts";
import { KeysFile, keyFor, tenancyOf } from "../support/keys-file.ts";

const { tokenizer } = await nanoModel();
const saying = (text: string, step = 1) => answering(tokenizer.encode(text), step);
const ask = { model: "nano", input: "Hi" } as const;

function clientOf(harness: Harness): OpenAI {
  return new OpenAI({ baseURL: `${harness.url}/v1`, apiKey: "none", maxRetries: 0 });
}

/** The events of a stream, with what is no event left out. */
async function eventsOf(harness: Harness, path: string) {
  const response = await fetch(`${harness.url}${path}`);
  expect(response.status).toBe(200);
  const blocks = (await response.text()).split("\n\n").filter((block) => block.startsWith("event: "));
  return blocks.map((block) => ResponseStreamEvent.parse(JSON.parse(block.split("\ndata: ")[1]!)));
}

const delta = (event: object) => ("delta" in event ? event.delta : "");

describe("a stored response", () => {
  test("is got back as it was told, unary and streamed, with the same events", async () => {
    await using it = await startHarness(saying("Hello you.</longcat_s>", 2));
    const client = clientOf(it);
    const whole = await client.responses.create({ ...ask, metadata: { a: "b" } });
    expect(whole).toMatchObject({ store: true, output_text: "Hello you." });
    const { _request_id, ...told } = whole as typeof whole & { _request_id: string };
    expect(await client.responses.retrieve(whole.id)).toMatchObject(told);

    const seen: OpenAI.Responses.ResponseStreamEvent[] = [];
    for await (const event of await client.responses.create({ ...ask, stream: true })) seen.push(event);
    const id = "response" in seen[0]! ? seen[0].response.id : "";
    expect(await eventsOf(it, `/v1/responses/${id}?stream=true`)).toEqual(seen);
    expect(await eventsOf(it, `/v1/responses/${id}?stream=true&starting_after=4`)).toEqual(seen.slice(5));
    expect(await eventsOf(it, `/v1/responses/${id}?stream=true&starting_after=999`)).toEqual([]);
    expect((await client.responses.stream({ response_id: id }).finalResponse()).output_text).toBe("Hello you.");
  });

  test("is gone when it is deleted, and nobody finds one that never was", async () => {
    await using it = await startHarness(saying("Hello</longcat_s>"));
    const client = clientOf(it);
    const { id } = await client.responses.create(ask);
    await client.responses.delete(id);
    for (const one of [id, "resp_none", `resp_${"0".repeat(24)}`, "resp_*", "a.b"]) {
      await expect(client.responses.retrieve(one)).rejects.toMatchObject({ status: 404, param: "response_id" });
    }
    const next = client.responses.create({ ...ask, previous_response_id: id });
    await expect(next).rejects.toMatchObject({ status: 404, param: "previous_response_id" });
    const { id: unkept } = await client.responses.create({ ...ask, store: false });
    await expect(client.responses.retrieve(unkept)).rejects.toThrow(OpenAI.NotFoundError);
  });

  test("is gone on with: the next prompt is the one of the whole conversation; instructions are not carried over", async () => {
    await using it = await startHarness(saying("Fine.</longcat_s>"));
    const client = clientOf(it);
    const first = await client.responses.create({ ...ask, instructions: "Rhyme." });
    const second = await client.responses.create({ ...ask, input: "And you?", previous_response_id: first.id });
    await client.responses.create({ ...ask, input: "Good.", previous_response_id: second.id });
    await it.chat({
      messages: [
        ...[{ role: "user", content: "Hi" }],
        ...[
          { role: "assistant", content: "Fine." },
          { role: "user", content: "And you?" },
        ],
        ...[
          { role: "assistant", content: "Fine." },
          { role: "user", content: "Good." },
        ],
      ],
    });
    const prompts = it.flow.calls.map(({ request }) => tokenizer.decode(request.generation.tokens));
    expect(prompts[2]).toBe(prompts[3]);
    expect(prompts[0]).toContain("Rhyme.");

    const items = await client.responses.inputItems.list(second.id, { order: "asc" });
    expect(items.data.map((item) => item.type)).toEqual(["message", "message", "message"]);
    const page = await client.responses.inputItems.list(second.id, { order: "desc", limit: 1 });
    expect(page.data[0]).toMatchObject({ role: "user", content: [{ type: "input_text", text: "And you?" }] });
    expect(page.has_more).toBe(true);
    const rest = await client.responses.inputItems.list(second.id, { after: page.data[0]!.id! });
    expect(rest.data.map((item) => item.id)).toEqual([items.data[1]!.id, items.data[0]!.id]);
  });

  test("whose client left in mid stream is cancelled, with what it had", async () => {
    await using it = await startHarness(async (call) => {
      call.tokens(tokenizer.encode("Hello"));
      return await call.untilAborted();
    });
    const client = clientOf(it);
    const stream = await client.responses.create({ ...ask, stream: true });
    let id = "";
    for await (const event of stream) {
      if (event.type === "response.created") id = event.response.id;
      if (event.type === "response.output_text.delta") stream.controller.abort();
    }
    await eventually(async () => (await client.responses.retrieve(id)).status === "cancelled");
    expect((await client.responses.retrieve(id)).output_text).toBe("Hello");
  });

  test.each([
    ["?stream=maybe", "stream"],
    ["?starting_after=3", "starting_after"],
    ["?stream=true&starting_after=-1", "starting_after"],
    ["?stream=true&starting_after=1e3", "starting_after"],
    ["?include=x", "include"],
    ["/input_items?limit=0", "limit"],
    ["/input_items?limit=101", "limit"],
    ["/input_items?order=up", "order"],
    ["/input_items?after=none", "after"],
  ])("%s is refused by name", async (query, param) => {
    await using it = await startHarness(saying("Hello</longcat_s>"));
    const { id } = await clientOf(it).responses.create(ask);
    const response = await fetch(`${it.url}/v1/responses/${id}${query}`);
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: { param } });
  });
});

describe("a response in the background", () => {
  test("is queued at once, made whether or not anybody reads, and followed as it is made", async () => {
    const go = Promise.withResolvers<void>();
    await using it = await startHarness(async (call) => {
      await call.stream(tokenizer.encode("One, two, "));
      await call.orAborted(go.promise);
      await call.stream(tokenizer.encode("three.</longcat_s>"));
      return {};
    });
    const client = clientOf(it);
    const begun = await client.responses.create({ ...ask, background: true });
    expect(begun).toMatchObject({ status: "queued", background: true, output: [] });
    await eventually(async () => (await client.responses.retrieve(begun.id)).output_text === "One, two, ");
    expect(await client.responses.retrieve(begun.id)).toMatchObject({ status: "in_progress" });

    const seen: { type: string }[] = [];
    for await (const event of await client.responses.retrieve(begun.id, { stream: true })) {
      seen.push(event);
      if (event.type === "response.output_text.delta" && seen.map(delta).join("") === "One, two, ") go.resolve();
    }
    expect(seen.map(({ type }) => type).slice(0, 3)).toEqual([
      ...["response.created", "response.queued", "response.in_progress"],
    ]);
    expect(seen.map(delta).join("")).toBe("One, two, three.");
    expect(seen.at(-1)).toMatchObject({ type: "response.completed", response: { status: "completed" } });
    const { _request_id, ...ended } = (await client.responses.retrieve(begun.id)) as never as Record<string, unknown>;
    ResponseResponse.parse(withoutText(ended));
  });

  test("streams to the one who asked for it, and goes on when that one leaves", async () => {
    const go = Promise.withResolvers<void>();
    await using it = await startHarness(async (call) => {
      await call.stream(tokenizer.encode("One, two, "));
      await call.orAborted(go.promise);
      await call.stream(tokenizer.encode("three.</longcat_s>"));
      return {};
    });
    const client = clientOf(it);
    const stream = await client.responses.create({ ...ask, background: true, stream: true });
    let id = "";
    let last = -1;
    let text = "";
    for await (const event of stream) {
      if (event.type === "response.created") id = event.response.id;
      last = event.sequence_number;
      text += delta(event);
      if (text === "One, two, ") stream.controller.abort();
    }
    go.resolve();
    for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: last })) {
      expect(event.sequence_number).toBe(++last);
      text += delta(event);
    }
    expect(text).toBe("One, two, three.");
  });

  test("is cancelled on demand: the flow hears it, and the answer ends where it was", async () => {
    await using it = await startHarness(async (call) => {
      await call.stream(tokenizer.encode("One"));
      return await call.untilAborted();
    });
    const client = clientOf(it);
    const { id } = await client.responses.create({ ...ask, background: true });
    await eventually(async () => (await client.responses.retrieve(id)).output_text === "One");
    expect(await client.responses.cancel(id)).toMatchObject({
      ...{ status: "cancelled", output: [{ content: [{ text: "One" }] }] },
    });
    await eventually(() => it.flow.calls[0]!.ended);
    expect(await client.responses.cancel(id)).toMatchObject({ status: "cancelled" });
    const { id: foreground } = await withScript(it, saying("Hi</longcat_s>"), () => client.responses.create(ask));
    await expect(client.responses.cancel(foreground)).rejects.toMatchObject({ status: 400, param: "response_id" });
    const bad = client.responses.create({ ...ask, background: true, store: false });
    await expect(bad).rejects.toMatchObject({ status: 400, param: "store" });
  });

  test("ends with the key that asked for it, also where another gateway had begun it; those of other keys go on", async () => {
    const [acme, spare] = [keyFor("acme"), keyFor("acme")];
    const content = { tenants: { acme: {} }, keys: [acme.line, spare.line] };
    await using file = await KeysFile.with(content);
    const keyring = await file.open();
    const network = new MemoryNetwork(systemClock, systemRandom);
    const script: FlowScript = async (call) => {
      await call.stream(tokenizer.encode("One"));
      return await call.untilAborted();
    };
    const options = { tenancy: await tenancyOf(file, { keyring }) };
    const start = (gatewayId: string) =>
      startHarness(script, { ...options, gatewayId, bus: network.connect("control-plane") });
    const asKey = (harness: Harness, apiKey: string) =>
      new OpenAI({ baseURL: `${harness.url}/v1`, apiKey, maxRetries: 0 }).responses;
    let left = "";
    {
      await using one = await start("gw-one");
      left = (await asKey(one, acme.key).create({ ...ask, background: true })).id;
      await eventually(() => one.flow.calls[0]?.delivered === tokenizer.encode("One").length);
    }
    await using two = await start("gw-one");
    const { id } = await asKey(two, acme.key).create({ ...ask, background: true });
    const { id: kept } = await asKey(two, spare.key).create({ ...ask, background: true });
    await eventually(() => two.flow.calls.length === 2);
    await file.write({ ...content, keys: [spare.line] });
    await keyring.look();
    for (const one of [id, left]) {
      await eventually(async () => (await asKey(two, spare.key).retrieve(one)).status === "failed", 30_000);
      const { error } = await asKey(two, spare.key).retrieve(one);
      expect(error).toEqual({ code: "server_error", message: "The API key was revoked." });
    }
    expect((await asKey(two, spare.key).retrieve(kept)).status).toBe("in_progress");
    expect(two.flow.calls.map(({ ended }) => ended).filter((ended) => !ended)).toHaveLength(1);
  }, 60_000);

  test("has its turn by service_tier, as far as the tenant may ask for it", async () => {
    await using it = await startHarness(saying("Hi</longcat_s>"));
    const tiers = ["priority", "default", "flex"] as const;
    for (const service_tier of tiers) await clientOf(it).responses.create({ ...ask, service_tier });
    await clientOf(it).responses.create({ ...ask, service_tier: "flex", background: true });
    await eventually(() => it.flow.calls.length === 4);
    expect(it.flow.calls.map(({ request }) => request.share.urgency)).toEqual([1, 0, -1, -1]);
  });

  test("that fails says so", async () => {
    await using it = await startHarness(async () => {
      throw new Error("lost");
    });
    const client = clientOf(it);
    const { id } = await client.responses.create({ ...ask, background: true });
    await eventually(async () => (await client.responses.retrieve(id)).status === "failed");
    expect((await client.responses.retrieve(id)).error).toMatchObject({ code: "server_error" });
  });

  test("that its gateway leaves behind is gone on with by another, behind the last token that was kept", async () => {
    const network = new MemoryNetwork(systemClock, systemRandom);
    const told = tokenizer.encode("One, two, three, four.</longcat_s>");
    const [mine, theirs] = [network.connect("control-plane"), network.connect("control-plane")];
    const half = 4;
    let id = "";
    const seen: { sequence_number: number }[] = [];
    {
      await using one = await startHarness(
        async (call: FlowCall) => {
          await call.stream(told.slice(0, half));
          return await call.untilAborted();
        },
        { bus: mine, gatewayId: "gw-one" },
      );
      const stream = await clientOf(one).responses.create({ ...ask, background: true, stream: true });
      for await (const event of stream) {
        if (event.type === "response.created") id = event.response.id;
        seen.push(event);
        if (seen.map(delta).join("") === tokenizer.decode(told.slice(0, half))) break;
      }
    }
    const generated: number[][] = [];
    await using two = await startHarness(
      async (call) => {
        generated.push([...(call.request.generated ?? [])]);
        await call.stream(told.slice(half));
        return {};
      },
      { bus: theirs, gatewayId: "gw-two" },
    );
    const rest = await eventsOf(two, `/v1/responses/${id}?stream=true&starting_after=${seen.length - 1}`);
    expect(generated).toEqual([[...told.slice(0, half)]]);
    const all = [...seen, ...rest];
    expect(all.map((event) => event.sequence_number)).toEqual(all.map((_, i) => i));
    expect(all.map(delta).join("")).toBe("One, two, three, four.");
    expect(await eventsOf(two, `/v1/responses/${id}?stream=true`)).toEqual(all);
  }, 30_000);
});

function withoutText({ output_text, ...rest }: Record<string, unknown>) {
  return rest;
}

async function withScript<T>(it: Harness, script: FlowScript, work: () => Promise<T>): Promise<T> {
  it.flow.script = script;
  return await work();
}
