import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { ChatOpenAI } from "@langchain/openai";
import { APICallError, generateText, jsonSchema, Output, streamText, type ToolSet, tool } from "ai";
import OpenAI from "openai";

/** A tool call as every client can tell it. */
export interface Called {
  readonly name: string;
  readonly input: unknown;
}

interface Asked {
  readonly thinking?: boolean;
  readonly signal?: AbortSignal;
  readonly maxTokens?: number;
  readonly temperature?: number;
}

/** What the tests ask of a client, whatever its own words are. Retries are the client's own, at most `retries`. */
export interface ChatClient {
  readonly name: string;
  text(url: string, words: string, asked?: Asked, retries?: number): Promise<string>;
  /** Calls `onPiece` with each piece of text; returns when the stream ends. */
  stream(url: string, words: string, onPiece: (piece: string) => void, asked?: Asked): Promise<void>;
  call(url: string, words: string, streamed: boolean): Promise<Called>;
  object(url: string, words: string, schema: Schema): Promise<unknown>;
  /** HTTP status and text of what a refused request threw. */
  fault(error: unknown): { readonly status: number | undefined; readonly message: string };
}

type Schema = Readonly<Record<string, unknown>> & { readonly type: "object" };

const model = "nano";
const key = "none";
export const WEATHER = {
  name: "get_weather",
  description: "Tells the current weather of a city.",
  schema: {
    type: "object" as const,
    properties: { city: { type: "string", description: "Name of the city" } },
    required: ["city"],
  },
};

const user = (content: string) => [{ role: "user" as const, content }];

const openaiChat: ChatClient = {
  name: "openai, chat completions",
  async text(url, words, asked = {}, retries = 0) {
    const answer = await openaiOf(url, retries).chat.completions.create(chatBody(words, asked), rest(asked));
    return answer.choices[0]!.message.content ?? "";
  },
  async stream(url, words, onPiece, asked = {}) {
    const body = { ...chatBody(words, asked), stream: true as const };
    for await (const chunk of await openaiOf(url, 0).chat.completions.create(body, rest(asked)))
      onPiece(chunk.choices[0]?.delta.content ?? "");
  },
  async call(url, words, streamed) {
    const { schema: parameters, ...named } = WEATHER;
    const tools = [{ type: "function" as const, function: { ...named, parameters } }];
    const body = { ...chatBody(words, { thinking: true }), tools };
    const { completions } = openaiOf(url, 0).chat;
    const answer = streamed ? await completions.stream(body).finalChatCompletion() : await completions.create(body);
    const [made] = answer.choices[0]!.message.tool_calls!;
    if (made?.type !== "function") throw new Error("no call");
    return { name: made.function.name, input: JSON.parse(made.function.arguments) };
  },
  async object(url, words, schema) {
    const response_format = { type: "json_schema" as const, json_schema: { name: "answer", strict: true, schema } };
    const answer = await openaiOf(url, 0).chat.completions.parse({ ...chatBody(words, {}), response_format });
    return answer.choices[0]!.message.parsed;
  },
  fault: openaiFault,
};

const openaiResponses: ChatClient = {
  name: "openai, responses",
  text: async (url, words, asked = {}, retries = 0) =>
    (await openaiOf(url, retries).responses.create(responseBody(words, asked), rest(asked))).output_text,
  async stream(url, words, onPiece, asked = {}) {
    const body = { ...responseBody(words, asked), stream: true as const };
    for await (const event of await openaiOf(url, 0).responses.create(body, rest(asked)))
      onPiece(event.type === "response.output_text.delta" ? event.delta : "");
  },
  async call(url, words, streamed) {
    const { schema: parameters, ...named } = WEATHER;
    const body = {
      ...responseBody(words, { thinking: true }),
      tools: [{ type: "function" as const, ...named, parameters, strict: false }],
    };
    const { responses } = openaiOf(url, 0);
    const answer = streamed ? await responses.stream(body).finalResponse() : await responses.create(body);
    for (const item of answer.output)
      if (item.type === "function_call") return { name: item.name, input: JSON.parse(item.arguments) };
    throw new Error("no call");
  },
  async object(url, words, schema) {
    const format = { type: "json_schema" as const, name: "answer", strict: true, schema };
    return (await openaiOf(url, 0).responses.parse({ ...responseBody(words, {}), text: { format } })).output_parsed;
  },
  fault: openaiFault,
};

const vercel: ChatClient = {
  name: "ai with @ai-sdk/openai-compatible",
  text: async (url, prompt, asked = {}, retries = 0) =>
    (await generateText({ ...vercelOptions(url, asked), prompt, maxRetries: retries })).text,
  async stream(url, prompt, onPiece, asked = {}) {
    let failure: unknown = null;
    const onError = ({ error }: { readonly error: unknown }) => {
      failure = error;
    };
    for await (const piece of streamText({ ...vercelOptions(url, asked), prompt, maxRetries: 0, onError }).textStream)
      onPiece(piece);
    if (failure !== null) throw failure;
  },
  async call(url, prompt, streamed) {
    const tools = {
      get_weather: tool({
        description: WEATHER.description,
        inputSchema: jsonSchema<{ city: string }>(WEATHER.schema as never),
      }),
    } as unknown as ToolSet;
    const options = { ...vercelOptions(url, { thinking: true }), prompt, tools, maxRetries: 0 };
    const [made] = streamed ? await streamText(options).toolCalls : (await generateText(options)).toolCalls;
    return { name: made!.toolName, input: made!.input };
  },
  async object(url, prompt, schema) {
    const output = Output.object({ schema: jsonSchema(schema as never) });
    return (await generateText({ ...vercelOptions(url, {}), prompt, output, maxRetries: 0 })).output;
  },
  fault(error) {
    const called = APICallError.isInstance(error) ? error : (error as { readonly lastError?: unknown }).lastError;
    return APICallError.isInstance(called)
      ? { status: called.statusCode, message: called.message }
      : { status: undefined, message: String(error) };
  },
};

const langchain: ChatClient = {
  name: "@langchain/openai",
  text: async (url, words, asked = {}, retries = 0) =>
    (await langchainOf(url, asked, retries).invoke(words, rest(asked))).text,
  async stream(url, words, onPiece, asked = {}) {
    for await (const chunk of await langchainOf(url, asked, 0).stream(words, rest(asked))) onPiece(chunk.text);
    asked.signal?.throwIfAborted();
  },
  async call(url, words, streamed) {
    const bound = langchainOf(url, { thinking: true }, 0).bindTools([WEATHER]);
    let answer = streamed ? null : await bound.invoke(words);
    if (streamed) {
      for await (const chunk of await bound.stream(words))
        answer = answer === null ? chunk : answer.concat(chunk as never);
    }
    const [made] = answer!.tool_calls ?? [];
    return { name: made!.name, input: made!.args };
  },
  object: (url, words, schema) =>
    langchainOf(url, {}, 0).withStructuredOutput(schema, { name: "answer", method: "jsonSchema" }).invoke(words),
  fault: (error) => ({ status: (error as { status?: number }).status, message: (error as Error).message }),
};

const anthropic: ChatClient = {
  name: "@anthropic-ai/sdk",
  async text(url, words, asked = {}, retries = 0) {
    const { content } = await anthropicOf(url, retries).messages.create(messageBody(words, asked), rest(asked));
    return content.map((block) => (block.type === "text" ? block.text : "")).join("");
  },
  async stream(url, words, onPiece, asked = {}) {
    const stream = anthropicOf(url, 0).messages.stream(messageBody(words, asked), rest(asked));
    stream.on("text", onPiece);
    await stream.finalMessage();
  },
  async call(url, words, streamed) {
    const { schema: input_schema, ...named } = WEATHER;
    const body = { ...messageBody(words, { thinking: true }), tools: [{ ...named, input_schema }] };
    const { messages } = anthropicOf(url, 0);
    const { content } = streamed ? await messages.stream(body).finalMessage() : await messages.create(body);
    const made = content.find((block) => block.type === "tool_use");
    return { name: made!.name, input: made!.input };
  },
  async object(url, words, schema) {
    const body = { ...messageBody(words, {}), output_config: { format: { type: "json_schema" as const, schema } } };
    const { content } = await anthropicOf(url, 0).messages.create(body);
    return JSON.parse(content[0]?.type === "text" ? content[0].text : "");
  },
  fault: (error) =>
    error instanceof Anthropic.APIError
      ? { status: error.status, message: error.message }
      : { status: undefined, message: String(error) },
};

/** Clients as people use them, none of them changed. */
export const CHAT_CLIENTS: readonly ChatClient[] = [openaiChat, openaiResponses, vercel, langchain, anthropic];

function openaiOf(url: string, maxRetries: number): OpenAI {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries });
}

function anthropicOf(url: string, maxRetries: number): Anthropic {
  return new Anthropic({ baseURL: url, apiKey: key, maxRetries });
}

function langchainOf(url: string, { thinking = false, maxTokens = 100, temperature = 0 }: Asked, maxRetries: number) {
  return new ChatOpenAI({
    ...{ model, apiKey: key, temperature, maxTokens, maxRetries, configuration: { baseURL: `${url}/v1` } },
    modelKwargs: { reasoning_effort: thinking ? "high" : "none" },
  });
}

function vercelOptions(url: string, { thinking = false, maxTokens = 100, temperature = 0, signal }: Asked) {
  const provider = createOpenAICompatible({
    ...{ name: "margay", baseURL: `${url}/v1`, apiKey: key, supportsStructuredOutputs: true, includeUsage: true },
  });
  return {
    ...{ model: provider(model), temperature, maxOutputTokens: maxTokens },
    providerOptions: { margay: { reasoningEffort: thinking ? "high" : "none" } },
    ...(signal === undefined ? {} : { abortSignal: signal }),
  };
}

function chatBody(words: string, { thinking = false, maxTokens = 100, temperature = 0 }: Asked) {
  const reasoning_effort = thinking ? ("high" as const) : ("none" as const);
  return { model, messages: user(words), temperature, max_tokens: maxTokens, reasoning_effort };
}

function responseBody(words: string, { thinking = false, maxTokens = 100, temperature = 0 }: Asked) {
  const reasoning = { effort: thinking ? ("high" as const) : ("none" as const) };
  return { model, input: words, temperature, max_output_tokens: maxTokens, reasoning };
}

function messageBody(words: string, { thinking = false, maxTokens = 100, temperature = 0 }: Asked) {
  const asked = thinking ? { type: "adaptive" as const } : { type: "disabled" as const };
  return { model, messages: user(words), temperature, max_tokens: maxTokens, thinking: asked };
}

/** What the clients take beside the body. */
function rest({ signal }: Asked) {
  return signal === undefined ? {} : { signal };
}

function openaiFault(error: unknown) {
  return error instanceof OpenAI.APIError
    ? { status: error.status as number | undefined, message: error.message }
    : { status: undefined, message: String(error) };
}
