import type { FastifyReply, FastifyRequest } from "fastify";
import { ERRORS, type MargayError } from "#protocol/errors.ts";
import { AnswerStream } from "../chat/answer-stream.ts";
import type { ServedModel } from "../chat/served-model.ts";
import type { Settled } from "../flow/request-flow.ts";
import type { Tool, ToolChoice } from "./chat-schema.ts";
import { Exchange } from "./exchange.ts";
import { findModel, type GenerationHost, parseRequest, planChoices, requestIdOf } from "./generation-host.ts";
import { errorBody } from "./http-errors.ts";
import { GatheredMessage, messageEvent, StreamedMessage } from "./messages-blocks.ts";
import { conversationOf } from "./messages-conversation.ts";
import { CountTokensRequest, MessagesRequest } from "./messages-schema.ts";
import type { StreamDialect } from "./sse.ts";
import { storyHeaders } from "./story.ts";
import { constraintOf } from "./structured-output.ts";
import { refuseThinkers } from "./thinkers.ts";
import { underLimits } from "./under-limits.ts";

const ERROR_TYPES: Readonly<Record<number, string>> = {
  400: "invalid_request_error",
  401: "authentication_error",
  403: "permission_error",
  404: "not_found_error",
  413: "request_too_large",
  429: "rate_limit_error",
  503: "overloaded_error",
  504: "timeout_error",
};

/** A failure in Anthropic's form. */
export function messageErrorBody(error: MargayError, requestId: string): object {
  const type = ERROR_TYPES[ERRORS[error.code].status] ?? (error.status < 500 ? "invalid_request_error" : "api_error");
  return { type: "error", error: { type, message: errorBody(error).error.message }, request_id: requestId };
}

/** What the usage of a whole message has besides. */
const UNTOLD = { cache_creation: null, inference_geo: null, service_tier: null, speed: null } as const;
/** What every message has a field for and none of ours ever has. */
const NOTHING_BESIDE = { container: null, stop_details: null } as const;

/** Answers `POST /v1/messages`; throws `MargayError` while nothing was sent. */
export async function createMessage(host: GenerationHost, request: FastifyRequest, reply: FastifyReply) {
  refuseThinkers(request.headers);
  const body = parseRequest(MessagesRequest, request.body);
  const model = findModel(host.models, body.model);
  const { tokens, startsInReasoning, tools } = await promptOf(host, model, body);
  const fields = {
    model: body.model,
    max_tokens: body.max_tokens,
    temperature: body.temperature ?? null,
    top_p: body.top_p ?? null,
    top_k: body.top_k ?? null,
    ...formatOf(body),
  };
  const constraint = await constraintOf(host.vet, model, fields, { tools, choice: choiceOf(body), startsInReasoning });
  const prompt = { tokens, param: "messages" };
  const generations = planChoices(host, model, fields, [prompt], -1, constraint);

  const requestId = requestIdOf(request);
  const head = {
    ...{ id: requestId.replace(/^req_/, "msg_"), type: "message", role: "assistant", model: model.name },
    ...{ ...NOTHING_BESIDE, diagnostics: null },
  };
  const streamed = body.stream === true;
  const answer = new AnswerStream({
    ...{ model, tools, startsInReasoning, stop: body.stop_sequences ?? [] },
    parse: "chat",
    newCallId: () => `toolu_${host.random.hex(12)}`,
  });
  const dialect: StreamDialect = {
    end: "",
    failure: (error) => `event: error\ndata: ${JSON.stringify(messageErrorBody(error, requestId))}\n\n`,
  };
  reply.header("request-id", requestId);
  const exchange = new Exchange(host, { requestId, model, promptLengths: [tokens.length], reply, streamed, dialect });
  if (!streamed) {
    const sink = new GatheredMessage(answer);
    const settled = await exchange.run(generations, [sink], () => "");
    if (settled === null) return;
    reply.headers(storyHeaders(settled));
    return {
      ...head,
      content: sink.content,
      ...sink.stop,
      usage: { ...usageOf(tokens.length, settled[0]!), ...UNTOLD },
    };
  }
  const usage = { ...usageOf(tokens.length, { cachedTokens: 0, completionTokens: 0 }), ...UNTOLD };
  const message = { ...head, content: [], stop_reason: null, stop_sequence: null, usage };
  const sink = new StreamedMessage(answer, messageEvent("message_start", { message }));
  await exchange.run(generations, [sink], ([settled]) => {
    const last = { delta: { ...sink.stop, ...NOTHING_BESIDE }, usage: usageOf(tokens.length, settled!) };
    return messageEvent("message_delta", last) + messageEvent("message_stop", {});
  });
  return;
}

/** Answers `POST /v1/messages/count_tokens`. */
export async function countTokens(host: GenerationHost, request: FastifyRequest, reply: FastifyReply): Promise<object> {
  const body = parseRequest(CountTokensRequest, request.body);
  const model = findModel(host.models, body.model);
  const { tokens } = await underLimits(host.tenancy, request, reply, model, () => promptOf(host, model, body));
  return { input_tokens: tokens.length };
}

async function promptOf(host: GenerationHost, model: ServedModel, body: CountTokensRequest) {
  const offered = body.tool_choice?.type === "none" || !body.tools?.length ? null : body.tools;
  const tools: readonly Tool[] | null =
    offered?.map(({ name, description, input_schema: parameters }) => ({
      type: "function" as const,
      function: { name, parameters, ...(typeof description === "string" ? { description } : {}) },
    })) ?? null;
  const thinking = body.thinking ?? null;
  const templateKwargs = thinking === null ? {} : { enable_thinking: thinking.type !== "disabled" };
  const messages = conversationOf(body.system ?? null, body.messages);
  return { ...(await host.prompts.chat(model, messages, { tools, templateKwargs })), tools };
}

/** The chat's form of `output_config.format`. */
function formatOf({ output_config: config }: MessagesRequest) {
  const format = config?.format ?? null;
  if (format === null) return {};
  return { response_format: { type: "json_schema" as const, json_schema: { name: "answer", schema: format.schema } } };
}

function choiceOf({ tool_choice: choice }: MessagesRequest): ToolChoice | null {
  if (choice?.type === "any") return "required";
  return choice?.type === "tool" ? { type: "function", function: { name: choice.name } } : (choice?.type ?? null);
}

/** Anthropic counts cached tokens apart. */
function usageOf(
  promptTokens: number,
  { cachedTokens, completionTokens }: Pick<Settled, "cachedTokens" | "completionTokens">,
): object {
  return {
    input_tokens: promptTokens - cachedTokens,
    cache_creation_input_tokens: 0,
    cache_read_input_tokens: cachedTokens,
    output_tokens: completionTokens,
    ...{ output_tokens_details: null, server_tool_use: null },
  };
}
