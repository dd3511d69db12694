import type { FastifyReply, FastifyRequest } from "fastify";
import type { MargayError } from "#protocol/errors.ts";
import type { FinishReason } from "#protocol/request.ts";
import type { AnswerStream } from "../../chat/answer-stream.ts";
import type { Settled } from "../../flow/request-flow.ts";
import { type ChoiceSink, ReasoningTokens } from "../choice.ts";
import { Exchange } from "../exchange.ts";
import { findModel, type GenerationHost, parseRequest, requestIdOf } from "../generation-host.ts";
import { errorBody } from "../http-errors.ts";
import type { StreamDialect } from "../sse.ts";
import { storyHeaders } from "../story.ts";
import { answerStream, planResponse } from "./plan.ts";
import { ResponsesRequest } from "./request-schema.ts";
import { ResponseEvents } from "./response-events.ts";
import { type ResponseProgress, type ResponseUsage, responseHead } from "./response-object.ts";

/** Answers `POST /v1/responses`; throws `MargayError` while nothing was sent. */
export async function createResponse(host: GenerationHost, request: FastifyRequest, reply: FastifyReply) {
  const body = parseRequest(ResponsesRequest, request.body);
  const model = findModel(host.models, body.model);
  const { generation, reading } = await planResponse(host, model, body, []);
  const requestId = requestIdOf(request);
  const id = requestId.replace(/^req_/, "resp_");
  const seconds = () => Math.floor(host.clock.now() / 1000);
  const streamed = body.stream === true;
  const events = new ResponseEvents(responseHead(id, seconds(), body, generation.sampling), streamed);
  const reasoning = new ReasoningTokens(model, reading.startsInReasoning);
  const sink = new ResponseSink(answerStream(model, reading), events, reasoning);
  const promptLengths = [generation.promptLength];
  const dialect: StreamDialect = {
    end: "",
    failure: (error) => sink.end({ status: "failed", endedAt: seconds(), error: failureOf(error), usage: null }),
  };
  const exchange = new Exchange(host, { requestId, model, promptLengths, reply, streamed, dialect });
  const settled = await exchange.run([generation], [sink], ([done]) => {
    const usage = responseUsage(generation.promptLength, done!, reasoning.count);
    const status = done!.finish === "length" ? "incomplete" : "completed";
    return sink.end({ status, endedAt: seconds(), error: null, usage });
  });
  if (settled === null || streamed) return;
  reply.headers(storyHeaders(settled));
  return events.response;
}

/** Turns tokens into events. begun with the first tokens, or with the end. */
class ResponseSink implements ChoiceSink {
  readonly #answer: AnswerStream;
  readonly #events: ResponseEvents;
  readonly #reasoning: ReasoningTokens;
  #begun = false;

  constructor(answer: AnswerStream, events: ResponseEvents, reasoning: ReasoningTokens) {
    this.#answer = answer;
    this.#events = events;
    this.#reasoning = reasoning;
  }

  get stopped(): boolean {
    return this.#answer.stopped;
  }

  push(tokens: Int32Array): string {
    this.#begin();
    this.#reasoning.push(tokens);
    this.#events.push(this.#answer.push(tokens));
    return this.#events.take().join("");
  }

  finish(_finish: FinishReason): string {
    this.#begin();
    this.#events.push(this.#answer.finish());
    return this.#events.take().join("");
  }

  end(how: Parameters<ResponseEvents["end"]>[0]): string {
    this.#begin();
    this.#events.end(how);
    return this.#events.take().join("");
  }

  #begin(): void {
    if (!this.#begun) this.#events.begin();
    this.#begun = true;
  }
}

/** A failure as a response tells it. */
export function failureOf(error: MargayError): NonNullable<ResponseProgress["error"]> {
  const code = error.status === 429 ? "rate_limit_exceeded" : "server_error";
  return { code, message: errorBody(error).error.message };
}

export function responseUsage(promptTokens: number, settled: Settled, reasoningTokens: number): ResponseUsage {
  return {
    input_tokens: promptTokens,
    input_tokens_details: { cached_tokens: settled.cachedTokens, cache_write_tokens: 0 },
    output_tokens: settled.completionTokens,
    output_tokens_details: { reasoning_tokens: reasoningTokens },
    total_tokens: promptTokens + settled.completionTokens,
  };
}
