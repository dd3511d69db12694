/** A plain HTTP client for tests: no library between the test and the bytes. */

interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

export interface Answer {
  status: number;
  headers: Headers;
  content: string;
  reasoning: string;
  toolCalls: ToolCall[];
  finish: string | null;
  usage: { prompt_tokens: number; completion_tokens: number } | null;
  /** Comments of the stream, without the colon. */
  comments: string[];
  /** Chunks that carried text or tool calls. */
  chunks: number;
  error: { message: string; type: string; param: string | null; code: string | null } | null;
  ended: boolean;
}

interface StreamOptions {
  readonly headers?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
  /** Called after each chunk with text. */
  readonly onChunk?: (answer: Answer) => void | Promise<void>;
}

interface WireDelta {
  content?: string | null;
  reasoning_content?: string | null;
  tool_calls?: { index: number; id?: string; function?: { name?: string; arguments?: string } }[];
}

interface WireChunk {
  error?: Answer["error"];
  usage?: Answer["usage"];
  choices?: { text?: string; delta?: WireDelta; finish_reason: string | null }[];
}

function emptyAnswer(response: Response): Answer {
  return {
    status: response.status,
    headers: response.headers,
    content: "",
    reasoning: "",
    toolCalls: [],
    finish: null,
    usage: null,
    comments: [],
    chunks: 0,
    error: null,
    ended: false,
  };
}

/** Posts a request with `stream: true` and reads it to its end. An HTTP error is returned, not thrown. */
export async function stream(url: string, path: string, body: object, options: StreamOptions = {}): Promise<Answer> {
  const response = await fetch(`${url}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...options.headers },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    ...(options.signal ? { signal: options.signal } : {}),
  });
  const answer = emptyAnswer(response);
  if (!response.ok || response.body === null) {
    answer.error = ((await response.json()) as { error: Answer["error"] }).error;
    return answer;
  }
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of response.body) {
    const lines = (rest + decoder.decode(bytes as Uint8Array, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line.startsWith(":")) answer.comments.push(line.slice(1).trim());
      else if (line === "data: [DONE]") answer.ended = true;
      else if (line.startsWith("data: ")) {
        const before = answer.chunks;
        take(answer, JSON.parse(line.slice(6)) as WireChunk);
        if (answer.chunks > before) await options.onChunk?.(answer);
      }
    }
  }
  return answer;
}

function take(answer: Answer, chunk: WireChunk): void {
  if (chunk.error) answer.error = chunk.error;
  if (chunk.usage) answer.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  if (choice.finish_reason) answer.finish = choice.finish_reason;
  const text = choice.text ?? choice.delta?.content ?? "";
  const reasoning = choice.delta?.reasoning_content ?? "";
  answer.content += text;
  answer.reasoning += reasoning;
  for (const call of choice.delta?.tool_calls ?? []) {
    answer.toolCalls[call.index] ??= { id: "", name: "", arguments: "" };
    const known = answer.toolCalls[call.index]!;
    known.id ||= call.id ?? "";
    known.name += call.function?.name ?? "";
    known.arguments += call.function?.arguments ?? "";
  }
  if (text !== "" || reasoning !== "" || choice.delta?.tool_calls) answer.chunks++;
}

/** Posts a request and reads the one answer. */
export async function unary(
  url: string,
  path: string,
  body: object,
  headers: Readonly<Record<string, string>> = {},
): Promise<Answer> {
  const response = await fetch(`${url}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
  const answer = emptyAnswer(response);
  const parsed = (await response.json()) as {
    error?: Answer["error"];
    usage?: Answer["usage"];
    choices?: {
      text?: string;
      finish_reason: string;
      message?: {
        content: string | null;
        reasoning_content?: string | null;
        tool_calls?: { id: string; function: { name: string; arguments: string } }[];
      };
    }[];
  };
  answer.error = parsed.error ?? null;
  answer.usage = parsed.usage ?? null;
  const choice = parsed.choices?.[0];
  if (choice) {
    answer.content = choice.text ?? choice.message?.content ?? "";
    answer.reasoning = choice.message?.reasoning_content ?? "";
    answer.toolCalls = (choice.message?.tool_calls ?? []).map((call) => ({ id: call.id, ...call.function }));
    answer.finish = choice.finish_reason;
    answer.ended = true;
  }
  return answer;
}
