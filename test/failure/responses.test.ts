import type OpenAI from "openai";
import { afterAll, beforeAll, expect, test } from "vitest";
import { controlPlanePid, openAiOf } from "../support/gateway-process.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";

/** `ref` and a seed: the text with faults must be the text without, to the letter. */

type StreamEvent = OpenAI.Responses.ResponseStreamEvent;
const TOKENS = 1_200;
const body = {
  ...{ model: "nano", input: "Tell me a story about a fox.", temperature: 0.8, max_output_tokens: TOKENS },
  ...({ seed: 7, min_tokens: TOKENS } as object),
};

let system: System;

beforeAll(async () => {
  system = await startSystem({ MARGAY_BACKEND: "ref", MARGAY_DECODE: "2..2" });
  await system.ready("prefill", 1);
  await system.ready("decode", 2);
});
afterAll(async () => expect(await system.stop()).toBe(0));

async function retries(): Promise<number> {
  return [...(await system.metric(system.url, "margay_retries_total")).values()].reduce((a, b) => a + b, 0);
}

async function running(healthUrl: string): Promise<number> {
  return [...(await system.metric(healthUrl, "margay_worker_requests")).values()].reduce((a, b) => a + b, 0);
}

/** What one reader has seen of a response, over all its connections. */
class Reader {
  readonly events: StreamEvent[] = [];
  id = "";

  get text(): string {
    return this.events.map((event) => (event.type === "response.output_text.delta" ? event.delta : "")).join("");
  }

  get ended(): boolean {
    return ["response.completed", "response.incomplete"].includes(this.events.at(-1)?.type ?? "");
  }

  /** Reads a connection to its end, however that comes. */
  async read(connection: Promise<AsyncIterable<StreamEvent>>): Promise<void> {
    try {
      for await (const event of await connection) {
        if (event.type === "response.created") this.id = event.response.id;
        this.events.push(event);
      }
    } catch {
      // The server died, or is not there yet.
    }
  }

  /** Asks again, wherever the system then serves, until the response is over. */
  async follow(): Promise<void> {
    await waitFor(
      "the response to end",
      async () => {
        const starting_after = this.events.at(-1)!.sequence_number;
        const serves = await openAiOf(system);
        await this.read(serves.responses.retrieve(this.id, { stream: true, starting_after }));
        return this.ended ? true : null;
      },
      120_000,
      system.log,
    );
  }
}

test("responses survive a decode worker and then the gateway, both killed: same text, no event missing or doubled", async () => {
  const first = await openAiOf(system);
  const clean = await first.responses.create({ ...body, store: false });
  expect(clean.usage!.output_tokens).toBe(TOKENS);

  const controlPlane = await controlPlanePid(system);
  const decoders = (await system.ranks()).filter(({ role }) => role === "decode");
  const readers = [new Reader(), new Reader()];
  const [background, foreground] = readers as [Reader, Reader];
  const reading = Promise.all([
    background.read(first.responses.create({ ...body, background: true, stream: true })),
    foreground.read(first.responses.create({ ...body, stream: true })),
  ]);
  await waitFor(
    "the beginning of both texts",
    () => (readers.every(({ text }) => text !== "") ? true : null),
    60_000,
    system.log,
  );
  const busy = await waitFor(
    "a decode rank that works",
    async () => {
      for (const rank of decoders) if ((await running(rank.healthUrl)) > 0) return rank;
      return null;
    },
    30_000,
    system.log,
  );
  process.kill(busy.pid, "SIGKILL");
  await waitFor("what the worker had to be placed again", async () => ((await retries()) > 0 ? true : null), 30_000);
  // At once: what the other worker streams would otherwise be over before the gateway dies, on a slow machine.
  process.kill(controlPlane, "SIGKILL");
  await reading;
  for (const { text, ended } of readers) {
    expect(ended).toBe(false);
    expect(text.length).toBeLessThan(0.9 * clean.output_text.length);
  }

  await Promise.all(readers.map((reader) => reader.follow()));
  for (const { events, text, id } of readers) {
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, i) => i));
    expect(text).toBe(clean.output_text);
    const serves = await openAiOf(system);
    const kept = await serves.responses.retrieve(id);
    expect(kept).toMatchObject({ status: "incomplete", output_text: text, usage: { output_tokens: TOKENS } });
    const again: StreamEvent[] = [];
    for await (const event of await serves.responses.retrieve(id, { stream: true })) again.push(event);
    expect(again).toEqual(events);
  }
}, 240_000);
