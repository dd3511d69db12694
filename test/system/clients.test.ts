import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MargayError } from "#protocol/errors.ts";
import { CHAT_CLIENTS } from "../support/chat-clients.ts";
import { startHarness } from "../support/gateway-harness.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { type System, startSystem } from "../support/system.ts";

/** The usual clients against the whole system, as their users would point them there. */

let system: System;

beforeAll(async () => {
  system = await startSystem();
  await Promise.all([system.ready("prefill", 1), system.ready("decode", 1)]);
});
afterAll(async () => expect(await system.stop()).toBe(0));

const PERSON = {
  type: "object" as const,
  properties: { name: { type: "string", maxLength: 12 }, age: { type: "integer", minimum: 1, maximum: 99 } },
  required: ["name", "age"],
  additionalProperties: false,
};
const CAPITAL = "What is the capital of Japan?";

describe.each(CHAT_CLIENTS)("$name", (client) => {
  test("gets text, in one piece and streamed", async () => {
    const whole = await client.text(system.url, CAPITAL);
    expect(whole).toBe("The capital of Japan is Tokyo.");
    const pieces: string[] = [];
    await client.stream(system.url, "Tell me a story about a fox.", (piece) => pieces.push(piece));
    expect(pieces.filter((piece) => piece !== "").length).toBeGreaterThan(1);
    expect(pieces.join("")).toBe(await client.text(system.url, "Tell me a story about a fox."));
  });

  test("gets a tool call, in one piece and streamed", async () => {
    for (const streamed of [false, true]) {
      const made = await client.call(system.url, "How is the weather in Rome today?", streamed);
      expect(made).toEqual({ name: "get_weather", input: { city: "Rome" } });
    }
  });

  test("gets an object of a schema", async () => {
    const words = "Extract name, age and city as JSON: Hugo is 31 years old and lives in Oslo.";
    const { name, age } = (await client.object(system.url, words, PERSON)) as Record<string, unknown>;
    expect(name).toBeTypeOf("string");
    expect(age).toBeGreaterThanOrEqual(1);
    expect(age).toBeLessThanOrEqual(99);
  });

  test("is told what is wrong with a request, in its own kind of error", async () => {
    const error = await client.text(system.url, CAPITAL, { temperature: 7 }).catch((thrown: unknown) => thrown);
    const { status, message } = client.fault(error);
    expect(status).toBe(400);
    expect(message).toContain("temperature must be a number from 0 to");
  });

  test("leaves in mid stream, and nothing is held any more", async () => {
    const abort = new AbortController();
    let pieces = 0;
    const reading = client.stream(
      system.url,
      "Tell me a story about a fox.",
      (piece) => {
        if (piece !== "" && ++pieces === 3) abort.abort();
      },
      { signal: abort.signal, maxTokens: 3_000 },
    );
    await reading.catch(() => {});
    expect(abort.signal.aborted).toBe(true);
    await expectNothingHeld(system);
  });

  test("comes back by itself after a 429", async () => {
    await using busy = await startHarness(async (call, index) => {
      if (index === 0) throw new MargayError("queue_full", undefined, { retryAfterMs: 1 });
      await call.stream(busy.model.tokenizer.encode("Hello.</longcat_s>"));
      return {};
    });
    expect(await client.text(busy.url, CAPITAL, {}, 2)).toBe("Hello.");
    expect(busy.flow.calls).toHaveLength(2);
  });
});
