import type { Clock } from "#service/clock.ts";

/** Where requests go. */
export interface LoadTarget {
  /** Of an OpenAI-compatible server, without `/v1` and without a slash at the end. */
  readonly url: string;
  readonly model: string;
  readonly apiKey: string | null;
  /** Ask for exactly as many tokens as are allowed (`ignore_eos`, which OpenAI's own server refuses). */
  readonly exact: boolean;
}

/** How one request went, as its client saw it. Milliseconds. */
export interface Observation {
  /** Since the start of the run. */
  readonly atMs: number;
  /** null: it went well. */
  readonly error: string | null;
  readonly promptTokens: number;
  readonly tokens: number;
  /** From the request to its first text; null: there was none. */
  readonly ttftMs: number | null;
  readonly totalMs: number;
  /** Between one piece of text and the next. */
  readonly gapsMs: readonly number[];
}

interface Chunk {
  readonly error?: { readonly message?: string };
  readonly choices?: readonly {
    readonly delta?: { readonly content?: string | null; readonly reasoning_content?: string | null };
  }[];
  readonly usage?: { readonly prompt_tokens: number; readonly completion_tokens: number } | null;
}

/** Asks once and reads the stream to its end. Never throws: a failure is an observation too. */
export async function streamOne(
  target: LoadTarget,
  request: { readonly prompt: string; readonly maxTokens: number },
  clock: Clock,
  runStartMs: number,
  signal: AbortSignal,
): Promise<Observation> {
  const startMs = clock.monotonic();
  let lastMs: number | null = null;
  let ttftMs: number | null = null;
  const gapsMs: number[] = [];
  let usage: Chunk["usage"] = null;
  let error: string | null = null;
  try {
    for await (const chunk of chunks(await ask(target, request, signal))) {
      if (chunk.error !== undefined) throw new Error(chunk.error.message ?? "the stream failed");
      usage = chunk.usage ?? usage;
      const delta = chunk.choices?.[0]?.delta;
      if (!delta?.content && !delta?.reasoning_content) continue;
      const nowMs = clock.monotonic();
      if (lastMs === null) ttftMs = nowMs - startMs;
      else gapsMs.push(nowMs - lastMs);
      lastMs = nowMs;
    }
  } catch (thrown) {
    error = thrown instanceof Error ? thrown.message : String(thrown);
  }
  return {
    ...{ atMs: startMs - runStartMs, error, ttftMs, gapsMs, totalMs: clock.monotonic() - startMs },
    promptTokens: usage?.prompt_tokens ?? 0,
    // A server that tells no usage sends a token in each piece, as far as anybody can see.
    tokens: usage?.completion_tokens ?? (ttftMs === null ? 0 : gapsMs.length + 1),
  };
}

async function ask(
  { url, model, apiKey, exact }: LoadTarget,
  { prompt, maxTokens }: { readonly prompt: string; readonly maxTokens: number },
  signal: AbortSignal,
): Promise<ReadableStream<Uint8Array>> {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", ...(apiKey === null ? {} : { authorization: `Bearer ${apiKey}` }) },
    body: JSON.stringify({
      model,
      messages: [{ role: "user", content: prompt }],
      max_tokens: maxTokens,
      stream: true,
      stream_options: { include_usage: true },
      ...(exact ? { ignore_eos: true } : {}),
    }),
    signal,
  });
  if (response.ok && response.body !== null) return response.body;
  await response.arrayBuffer();
  throw new Error(`status ${response.status}`);
}

/** The data events of a stream of server-sent events. Throws where it ends without its last word. */
async function* chunks(body: ReadableStream<Uint8Array>): AsyncGenerator<Chunk> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of body) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice("data:".length).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data) as Chunk;
    }
  }
  throw new Error("the stream ended without [DONE]");
}
