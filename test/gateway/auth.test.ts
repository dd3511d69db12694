import OpenAI from "openai";
import { describe, expect, test } from "vitest";
import { ErrorResponse, ModelListResponse } from "../../control-plane/gateway/response-schema.ts";
import { answering } from "../support/fake-flow.ts";
import { eventually, nanoModel, startHarness } from "../support/gateway-harness.ts";
import { KeysFile, keyFor, tenancyOf } from "../support/keys-file.ts";

const { tokenizer } = await nanoModel();
const hello = answering(tokenizer.encode("Hello you."));
const acme = keyFor("acme");
const other = keyFor("other");
const content = { tenants: { acme: {}, other: { models: ["large"] } }, keys: [acme.line, other.line] };

const bearer = (key: string) => ({ "content-type": "application/json", authorization: `Bearer ${key}` });

describe("where keys are set", () => {
  test("nothing answers without one but health, metrics and the document", async () => {
    await using file = await KeysFile.with(content);
    await using harness = await startHarness(hello, { tenancy: await tenancyOf(file) });
    for (const path of ["/livez", "/readyz", "/metrics", "/openapi.json"])
      expect((await fetch(harness.url + path)).status).toBe(200);
    for (const path of ["/v1/models", "/v1/models/nano", "/%761/models", "/v1/models/"])
      expect([path, (await fetch(harness.url + path)).status]).toEqual([path, 401]);
    for (const path of ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens"])
      expect([path, (await harness.post(path, { model: "nano" })).status]).toEqual([path, 401]);
    const refused = await harness.chat({}, { headers: bearer("mgy-wrong") });
    expect([refused.status, refused.headers.get("www-authenticate")]).toEqual([401, "Bearer"]);
    const { error } = ErrorResponse.parse(await refused.json());
    expect(error).toMatchObject({ type: "invalid_request_error", code: "invalid_api_key" });
    expect(JSON.stringify(error)).not.toContain("mgy-wrong");
    expect(harness.flow.calls).toHaveLength(0);
  });

  test("a key is taken as OpenAI's clients and as Anthropic's send it", async () => {
    await using file = await KeysFile.with(content);
    await using harness = await startHarness(hello, { tenancy: await tenancyOf(file) });
    expect((await harness.chat({}, { headers: bearer(acme.key) })).status).toBe(200);
    const messages = { model: "nano", max_tokens: 10, messages: [{ role: "user", content: "Hi" }] };
    const headers = { "content-type": "application/json", "x-api-key": acme.key };
    expect((await harness.post("/v1/messages", messages, { headers })).status).toBe(200);
    const client = new OpenAI({ apiKey: acme.key, baseURL: `${harness.url}/v1` });
    expect((await client.models.list()).data.map((model) => model.id)).toEqual(["nano"]);
    const wrong = new OpenAI({ apiKey: "mgy-x", baseURL: `${harness.url}/v1`, maxRetries: 0 });
    await expect(wrong.models.list()).rejects.toBeInstanceOf(OpenAI.AuthenticationError);
  });

  test("a model that a tenant may not use is 403 and not listed to it", async () => {
    await using file = await KeysFile.with(content);
    await using harness = await startHarness(hello, { tenancy: await tenancyOf(file) });
    const refused = await harness.chat({}, { headers: bearer(other.key) });
    expect(refused.status).toBe(403);
    expect(ErrorResponse.parse(await refused.json()).error).toMatchObject({ code: "not_allowed", param: "model" });
    expect((await fetch(`${harness.url}/v1/models/nano`, { headers: bearer(other.key) })).status).toBe(403);
    const list = await fetch(`${harness.url}/v1/models`, { headers: bearer(other.key) });
    expect(ModelListResponse.parse(await list.json()).data).toEqual([]);
    expect(harness.flow.calls).toHaveLength(0);
  });

  test("a key revoked while its stream runs ends the stream with an error event; other keys' streams go on", async () => {
    await using file = await KeysFile.with(content);
    const keyring = await file.open();
    const spare = keyFor("acme");
    await file.write({ ...content, keys: [...content.keys, spare.line] });
    await keyring.look();
    const release = Promise.withResolvers<void>();
    await using harness = await startHarness(
      async (call) => {
        call.progress("placed");
        call.tokens([...tokenizer.encode("Hello you.")]);
        await call.orAborted(release.promise);
        return {};
      },
      { tenancy: await tenancyOf(file, { keyring }) },
    );
    const revoked = await harness.chat({ stream: true }, { headers: bearer(acme.key) });
    const kept = await harness.chat({ stream: true }, { headers: bearer(spare.key) });
    await eventually(() => harness.flow.calls.length === 2);
    await file.write({ ...content, keys: [spare.line] });
    await keyring.look();
    const text = await revoked.text();
    expect(text.trim().split("\n").at(-1)).toBe(
      'data: {"error":{"message":"The API key was revoked.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}',
    );
    release.resolve();
    expect((await kept.text()).trim().endsWith("data: [DONE]")).toBe(true);
    expect((await harness.chat({}, { headers: bearer(acme.key) })).status).toBe(401);
  });
});
