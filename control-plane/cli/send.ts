import { cliConfig } from "./config.ts";
import { runningSystem } from "./running-system.ts";

interface SendOptions {
  readonly model: string | null;
  /** null leaves the choice to the template. */
  readonly thinking: boolean | null;
  readonly maxTokens: number | null;
  readonly temperature: number | null;
}

interface Delta {
  readonly content?: string;
  readonly reasoning_content?: string;
  readonly tool_calls?: readonly { readonly function?: { readonly name?: string; readonly arguments?: string } }[];
}

interface Chunk {
  readonly error?: { readonly message: string };
  readonly choices?: readonly { readonly delta?: Delta }[];
}

const dim = (text: string) => (process.stdout.isTTY ? `\x1b[2m${text}\x1b[0m` : text);

/** Asks one question of the running system and prints the answer as it comes. Returns the exit code. */
export async function send(question: string, options: SendOptions): Promise<number> {
  const { url } = await runningSystem();
  const { apiKey } = cliConfig();
  const authorization: Record<string, string> = apiKey === null ? {} : { authorization: `Bearer ${apiKey}` };
  const model = options.model ?? (await firstModel(url, authorization));
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", ...authorization },
    body: JSON.stringify({
      model,
      messages: [{ role: "user", content: question }],
      stream: true,
      ...(options.maxTokens === null ? {} : { max_tokens: options.maxTokens }),
      ...(options.temperature === null ? {} : { temperature: options.temperature }),
      ...(options.thinking === null ? {} : { chat_template_kwargs: { enable_thinking: options.thinking } }),
    }),
  });
  if (!response.ok || response.body === null) throw new Error(await errorText(response));
  let told = "";
  let thinking = false;
  for await (const event of events(response.body)) {
    if (event.startsWith(":")) {
      told = event.slice(1).trim();
      continue;
    }
    if (!event.startsWith("data: ") || event === "data: [DONE]") continue;
    const chunk = JSON.parse(event.slice(6)) as Chunk;
    if (chunk.error !== undefined) throw new Error(chunk.error.message);
    const delta = chunk.choices?.[0]?.delta;
    if (delta === undefined) continue;
    if (delta.reasoning_content) {
      thinking = true;
      process.stdout.write(dim(delta.reasoning_content));
    }
    if (thinking && (delta.content || delta.tool_calls)) {
      thinking = false;
      process.stdout.write("\n");
    }
    if (delta.content) process.stdout.write(delta.content);
    for (const call of delta.tool_calls ?? []) {
      process.stdout.write(
        `${call.function?.name ? `\n-> ${call.function.name} ` : ""}${call.function?.arguments ?? ""}`,
      );
    }
  }
  process.stdout.write("\n");
  if (told !== "") process.stderr.write(`${dim(told)}\n`);
  return 0;
}

/** The non-empty lines of a server-sent event stream. */
async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of body) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) if (line !== "") yield line;
  }
}

async function firstModel(url: string, headers: Readonly<Record<string, string>>): Promise<string> {
  const response = await fetch(`${url}/v1/models`, { headers });
  if (!response.ok) throw new Error(await errorText(response));
  const list = (await response.json()) as { readonly data: readonly { readonly id: string }[] };
  const first = list.data[0];
  if (first === undefined) throw new Error("no model is served");
  return first.id;
}

async function errorText(response: Response): Promise<string> {
  const body = (await response.json().catch(() => null)) as { readonly error?: { readonly message?: string } } | null;
  return body?.error?.message ?? `HTTP status ${response.status}`;
}
