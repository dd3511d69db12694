import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MargayError } from "#protocol/errors.ts";
import { startHarness } from "../support/gateway-harness.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { type PythonWithPackage, pythonPackage } from "../support/python-packages.ts";
import { type System, startSystem } from "../support/system.ts";

/** The official client for Python, from PyPI as it is, against the whole system. */

const VERSION = "3.57.0";
const script = fileURLToPath(new URL("./openai_client.py", import.meta.url));
const found = pythonPackage("openai", VERSION);

if ("lack" in found) test.skip(`openai for Python (not run: ${found.lack})`, () => {});
else describe("openai for Python", () => describeClient(found));

function describeClient({ python, env }: PythonWithPackage): void {
  let system: System;
  // biome-ignore lint/suspicious/noExplicitAny: what the script prints, looked at below
  let seen: Record<string, any>;

  beforeAll(async () => {
    system = await startSystem();
    await Promise.all([system.ready("prefill", 1), system.ready("decode", 1)]);
    await using busy = await startHarness(async (call, index) => {
      if (index === 0) throw new MargayError("queue_full", undefined, { retryAfterMs: 1 });
      await call.stream(busy.model.tokenizer.encode("Hello.</longcat_s>"));
      return {};
    });
    const argv = [script, system.url, busy.url];
    const { stdout } = await promisify(execFile)(python, argv, { env: { ...env }, timeout: 240_000 });
    seen = JSON.parse(stdout);
  }, 300_000);
  afterAll(async () => expect(await system?.stop()).toBe(0), 90_000);

  test("gets text, in one piece and streamed, with its usage", () => {
    expect(seen).toMatchObject({ version: VERSION, models: ["nano"], text: "The capital of Japan is Tokyo." });
    expect(seen.streamed.same).toBe(true);
    expect(seen.streamed.pieces).toBeGreaterThan(1);
    expect(seen.streamed.tokens).toBeGreaterThan(3);
  });

  test("gets a tool call, in one piece and streamed", () => {
    const call = { name: "get_weather", input: { city: "Rome" }, finish: "tool_calls" };
    expect([seen.tool, seen.streamed_tool]).toEqual([call, call]);
  });

  test("gets an object of a schema", () => {
    expect(Object.keys(seen.structured).sort()).toEqual(["age", "name"]);
    expect(seen.structured.age).toBeGreaterThanOrEqual(1);
    expect(seen.structured.age).toBeLessThanOrEqual(99);
  });

  test("gets a response, event by event", () => {
    expect(seen.response.done).not.toBe("");
    expect(seen.response.streamed).toBe(seen.response.done);
  });

  test("is told what is wrong with a request, in its own kind of error", () => {
    expect(seen.error).toMatchObject({ status: 400, param: "temperature" });
    expect(seen.error.message).toContain("temperature must be a number from 0 to");
  });

  test("leaves in mid stream, and nothing is held any more", async () => {
    expect(seen.abort).toBe(true);
    await expectNothingHeld(system);
  });

  test("comes back by itself after a 429", () => {
    expect(seen.retried).toBe("Hello.");
  });
}
