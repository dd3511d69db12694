import OpenAI from "openai";
import { describe, expect, test } from "vitest";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { ErrorResponse } from "../../control-plane/gateway/response-schema.ts";
import { answering } from "../support/fake-flow.ts";
import { nanoModel, readStream, startHarness } from "../support/gateway-harness.ts";
import { KeysFile, keyFor, tenancyOf } from "../support/keys-file.ts";

const { tokenizer } = await nanoModel();
const hello = answering(tokenizer.encode("Hello you."));
const acme = keyFor("acme");
const headers = { "content-type": "application/json", authorization: `Bearer ${acme.key}` };
const limited = (limits: object) => ({ tenants: { acme: { limits } }, keys: [acme.line] });

describe("a tenant's limits", () => {
  test("hold over two gateways, and are told in every answer", async () => {
    await using file = await KeysFile.with(limited({ requestsPerMinute: 4 }));
    const network = new MemoryNetwork(systemClock, systemRandom);
    const tenancyAt = (gatewayId: string) => tenancyOf(file, { gatewayId, bus: network.connect("control-plane") });
    await using first = await startHarness(hello, { tenancy: await tenancyAt("gw-1") });
    await using second = await startHarness(hello, { tenancy: await tenancyAt("gw-2") });
    const answers = await Promise.all(
      Array.from({ length: 10 }, (_, index) => (index % 2 ? first : second).chat({}, { headers })),
    );
    const statuses = answers.map(({ status }) => status).sort();
    expect(statuses).toEqual([...Array(4).fill(200), ...Array(6).fill(429)]);
    for (const answer of answers) expect(answer.headers.get("x-ratelimit-limit-requests")).toBe("4");
    const refused = answers.find(({ status }) => status === 429)!;
    const seconds = Number(refused.headers.get("retry-after"));
    expect(seconds).toBeGreaterThan(0);
    expect(seconds).toBeLessThanOrEqual(15);
    const { error } = ErrorResponse.parse(await refused.json());
    expect(error).toMatchObject({ type: "rate_limit_error", code: "rate_limit_exceeded", retry_after: seconds });
  });

  test("are headers of a stream too, and a refused stream is a plain 429", async () => {
    await using file = await KeysFile.with(limited({ tokensPerMinute: 5_000, concurrency: 1 }));
    const release = Promise.withResolvers<void>();
    await using harness = await startHarness(
      async (call) => {
        call.tokens([...tokenizer.encode("Hello you.")]);
        await call.orAborted(release.promise);
        return {};
      },
      { tenancy: await tenancyOf(file) },
    );
    // So much that the bucket needs a third of a minute to have it back.
    const messages = [{ role: "user", content: "Hello you. ".repeat(600) }];
    const stream = await harness.chat({ stream: true, messages }, { headers });
    expect(stream.headers.get("x-ratelimit-limit-tokens")).toBe("5000");
    expect(Number(stream.headers.get("x-ratelimit-remaining-tokens"))).toBeLessThan(5_000);
    const refused = await harness.chat({ stream: true }, { headers });
    expect([refused.status, refused.headers.get("retry-after")]).toEqual([429, "1"]);
    release.resolve();
    expect((await readStream(stream)).done).toBe(true);
  });

  test("hold for tokenizing and counting as well, which use no tokens", async () => {
    await using file = await KeysFile.with(limited({ requestsPerMinute: 3, tokensPerMinute: 5_000 }));
    await using harness = await startHarness(hello, { tenancy: await tenancyOf(file) });
    const asked = [
      ["/tokenize", { model: "nano", prompt: "Hello you." }],
      ["/detokenize", { model: "nano", tokens: [300, 301] }],
      ["/v1/messages/count_tokens", { model: "nano", messages: [{ role: "user", content: "Hi" }] }],
    ] as const;
    for (const [index, [path, body]] of asked.entries()) {
      const answer = await harness.post(path, body, { headers });
      expect([path, answer.status]).toEqual([path, 200]);
      expect(answer.headers.get("x-ratelimit-remaining-requests")).toBe(String(2 - index));
      expect(answer.headers.get("x-ratelimit-remaining-tokens")).toBe("5000");
    }
    for (const [path, body] of asked) {
      const refused = await harness.post(path, body, { headers });
      expect([path, refused.status]).toEqual([path, 429]);
      expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(0);
      expect((await harness.post(path, body)).status).toBe(401);
    }
  });

  test("an OpenAI client waits for its turn by itself", async () => {
    await using file = await KeysFile.with(limited({ requestsPerMinute: 60 }));
    await using harness = await startHarness(hello, { tenancy: await tenancyOf(file) });
    const client = new OpenAI({ apiKey: acme.key, baseURL: `${harness.url}/v1`, maxRetries: 3 });
    const ask = () => client.chat.completions.create({ model: "nano", messages: [{ role: "user", content: "Hi" }] });
    const answers = await Promise.all(Array.from({ length: 61 }, ask));
    expect(answers).toHaveLength(61);
    expect(harness.flow.calls).toHaveLength(61);
  });
});
