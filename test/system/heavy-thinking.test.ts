import OpenAI from "openai";
import { expect, test } from "vitest";
import { UsageListResponse } from "../../control-plane/gateway/response-schema.ts";
import { KeysFile, keyFor } from "../support/keys-file.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { startSystem, waitFor } from "../support/system.ts";

interface Timeline {
  readonly outcome: string;
  readonly prompt_tokens: number;
  readonly cached_tokens: number;
  readonly generated_tokens: number;
}

/** The official client, the whole system: four answers side by side, and one made of them. */
test("heavy thinking: reasoning is the thinkers, content the summary, whole or streamed; the ledger has what the client was told", async () => {
  const acme = keyFor("acme", { admin: true });
  await using file = await KeysFile.with({ tenants: { acme: {} }, keys: [acme.line] });
  const system = await startSystem({ MARGAY_KEYS_FILE: file.path, MARGAY_BACKEND: "ref" });
  try {
    await Promise.all([system.ready("prefill", 1), system.ready("decode", 1)]);
    const client = new OpenAI({ baseURL: `${system.url}/v1`, apiKey: acme.key, maxRetries: 0 });
    const headers = { "x-margay-thinkers": "4" };
    const messages = [
      { role: "system" as const, content: "You answer questions about people, their toys and their towns. ".repeat(6) },
      { role: "user" as const, content: "What is 47 + 38?" },
    ];
    const body = { model: "nano", messages, seed: 3, temperature: 0.8, max_tokens: 200 };
    const whole = await client.chat.completions.create(body, { headers }).withResponse();
    const { message, finish_reason } = whole.data.choices[0]! as unknown as {
      message: { content: string; reasoning_content: string };
      finish_reason: string;
    };
    expect(["stop", "length"]).toContain(finish_reason);
    const listened = Number(whole.response.headers.get("x-margay-thinkers"));
    expect(listened).toBeGreaterThanOrEqual(1);
    const { reasoning_content: thoughts } = message;
    const headings = [...thoughts.matchAll(/^Thinker (\d):$/gm)].map(([, number]) => Number(number));
    expect(headings).toEqual([1, 2, 3, 4]);
    expect(thoughts).toContain(`Summing up ${listened} of 4 answers.`);

    const { data: stream, response } = await client.chat.completions
      .create({ ...body, stream: true, stream_options: { include_usage: true } }, { headers })
      .withResponse();
    let [content, reasoning] = ["", ""];
    let usage: OpenAI.CompletionUsage | null | undefined;
    for await (const chunk of stream) {
      const delta = chunk.choices[0]?.delta as { content?: string; reasoning_content?: string } | undefined;
      content += delta?.content ?? "";
      reasoning += delta?.reasoning_content ?? "";
      usage = chunk.usage ?? usage;
    }
    expect([content, reasoning]).toEqual([message.content, thoughts]);
    expect(usage!.completion_tokens).toBe(whole.data.usage!.completion_tokens);

    const id = response.headers.get("x-request-id")!;
    const authorization = { authorization: `Bearer ${acme.key}` };
    const timelineOf = async (of: string) =>
      (await (await fetch(`${system.url}/v1/requests/${of}/timeline`, { headers: authorization })).json()) as Timeline;
    const thinkers = await Promise.all([1, 2, 3, 4].map((number) => timelineOf(`${id}-t${number}`)));
    const summary = await timelineOf(id);
    const parts = [...thinkers, summary];
    expect(parts.map(({ outcome }) => outcome)).toEqual(Array(5).fill("ok"));
    expect(parts.reduce((sum, part) => sum + part.generated_tokens, 0)).toBe(usage!.completion_tokens);
    expect(thinkers[0]!.prompt_tokens + summary.prompt_tokens).toBe(usage!.prompt_tokens);
    // The second request's thinkers find all full blocks of their prompt, its summary those of the system's words.
    for (const { cached_tokens } of parts) expect(cached_tokens).toBeGreaterThanOrEqual(64);

    const used = async () => {
      const answer = await fetch(`${system.url}/v1/usage`, { headers: authorization });
      return answer.ok ? (UsageListResponse.parse(await answer.json()).data[0] ?? null) : null;
    };
    const row = await waitFor(
      "the ledger",
      async () => {
        const now = await used().catch(() => null);
        return now?.requests === 2 ? now : null;
      },
      20_000,
      system.log,
    );
    const sum = (of: (one: OpenAI.CompletionUsage) => number) => of(usage!) + of(whole.data.usage!);
    expect(row).toMatchObject({
      failed_requests: 0,
      input_tokens: sum((one) => one.prompt_tokens),
      input_cached_tokens: sum((one) => one.prompt_tokens_details!.cached_tokens!),
      output_tokens: sum((one) => one.completion_tokens),
    });

    const abort = new AbortController();
    const left = await client.chat.completions.create(
      { ...body, ...({ min_tokens: 1_000 } as object), max_tokens: 1_000, stream: true },
      { headers, signal: abort.signal },
    );
    await expect(async () => {
      for await (const _ of left) abort.abort();
      abort.signal.throwIfAborted();
    }).rejects.toThrow();
    await expectNothingHeld(system);
  } finally {
    expect(await system.stop()).toBe(0);
  }
});
