import type { FastifyReply, FastifyRequest } from "fastify";
import { MargayError } from "#protocol/errors.ts";
import type { FinishReason } from "#protocol/request.ts";
import type { ResponseEnd, ResponseRecord } from "#protocol/response-entry.ts";
import type { ServedModel } from "../../chat/served-model.ts";
import { callerOf, shareOf } from "../auth.ts";
import type { ChoiceSink } from "../choice.ts";
import { Exchange } from "../exchange.ts";
import { findModel, parseRequest, requestIdOf } from "../generation-host.ts";
import { errorBody, refuse } from "../http-errors.ts";
import type { StreamDialect } from "../sse.ts";
import { storyHeaders } from "../story.ts";
import { refuseThinkers } from "../thinkers.ts";
import { endOf, failedEnd } from "./endings.ts";
import { type Keeping, keepingNothing, keepingStream, keepingWhole } from "./keeping.ts";
import { planResponse } from "./plan.ts";
import { ResponsesRequest } from "./request-schema.ts";
import { ResponseMaker } from "./response-maker.ts";
import { responseHead } from "./response-object.ts";
import type { ResponsesHost } from "./responses-host.ts";
import { earlierItems } from "./stored-response.ts";
import { followResponse } from "./tail.ts";

/** Answers `POST /v1/responses`; throws `MargayError` while nothing was sent. */
export async function createResponse(host: ResponsesHost, request: FastifyRequest, reply: FastifyReply) {
  refuseThinkers(request.headers);
  const body = parseRequest(ResponsesRequest, request.body);
  const model = findModel(host.models, body.model);
  const stored = body.store !== false;
  if (body.background === true && !stored) throw refuse("store", "must not be false for a response in the background");
  const previous = body.previous_response_id ?? null;
  const { tenant, keyDigest } = callerOf(request);
  const earlier = previous === null ? [] : await earlierItems(host, previous, tenant.name);
  const { generation, reading } = await planResponse(host, model, body, earlier);
  const requestId = requestIdOf(request);
  const id = requestId.replace(/^req_/, "resp_");
  const nowMs = host.clock.now();
  const head = responseHead(id, Math.floor(nowMs / 1000), body, generation.sampling);
  const record: ResponseRecord = {
    ...{ requestId, model: model.name, share: shareOf(request), keyDigest, deadlineMs: nowMs + host.requestMs },
    ...{
      generation,
      previous,
      head: JSON.stringify(head),
      input: JSON.stringify(body.input),
      reading: JSON.stringify(reading),
    },
  };
  const streamed = body.stream === true;
  if (body.background === true) {
    const told = (limits: Readonly<Record<string, string>>) => void reply.headers(limits);
    const work = { requestId, model: model.name, inputTokens: generation.promptLength };
    const ticket = await host.tenancy.begin(callerOf(request), work, told);
    reply.headers(ticket.headers);
    const response = await host.background.start(id, model, record, ticket);
    if (streamed) await followResponse(host, request, reply, id, -1);
    return streamed ? undefined : response;
  }
  const maker = new ResponseMaker(model, head, reading, streamed);
  return await answerNow({ host, reply, model, id, record, maker, stored, streamed });
}

interface Answering {
  readonly host: ResponsesHost;
  readonly reply: FastifyReply;
  readonly model: ServedModel;
  readonly id: string;
  readonly record: ResponseRecord;
  readonly maker: ResponseMaker;
  readonly stored: boolean;
  readonly streamed: boolean;
}

/** Makes the response while its client waits for it. */
async function answerNow({ host, reply, model, id, record, maker, stored, streamed }: Answering) {
  const { requestId, generation } = record;
  const common = { log: host.log, clock: host.clock, id, record };
  const keeping: Keeping = !stored
    ? keepingNothing
    : streamed
      ? keepingStream({
          ...common,
          send: (events) => exchange.send(events),
          onLost: (error) => exchange.abort(error),
        })
      : keepingWhole(common);
  const sink = new ResponseSink(maker, keeping);
  const seconds = () => Math.floor(host.clock.now() / 1000);
  const dialect: StreamDialect = {
    end: "",
    failure: (error) => sink.fail(error, seconds()),
  };
  const promptLengths = [generation.promptLength];
  const exchange = new Exchange(host, { requestId, model, promptLengths, reply, streamed, dialect });
  host.active.add(id);
  try {
    const settled = await exchange.run([generation], [sink], ([done]) =>
      sink.end(endOf(generation.promptLength, done!, seconds())),
    );
    if (settled === null || streamed) return;
    reply.headers(storyHeaders(settled));
    return maker.response;
  } finally {
    await sink.abandon(seconds());
    host.active.delete(id);
  }
}

/** Turns tokens into events, and sees that they are kept. Begun with the first tokens, or with the end. */
class ResponseSink implements ChoiceSink {
  readonly #maker: ResponseMaker;
  readonly #keeping: Keeping;

  constructor(maker: ResponseMaker, keeping: Keeping) {
    this.#maker = maker;
    this.#keeping = keeping;
  }

  get stopped(): boolean {
    return this.#maker.stopped;
  }

  get reasoningTokens(): number {
    return this.#maker.reasoningTokens;
  }

  push(tokens: Int32Array): string {
    this.#maker.begin();
    this.#maker.push(tokens);
    return this.#keeping.push(tokens, this.#take());
  }

  finish(_finish: FinishReason): string {
    return "";
  }

  async end(end: ResponseEnd): Promise<string> {
    this.#maker.end(end);
    return await this.#keeping.end(end, this.#take());
  }

  /** What a stream that had begun ends with. */
  async fail(error: MargayError, endedAt: number): Promise<string> {
    if (this.#maker.state !== "ended") {
      const told = await this.end(failedEnd(error, endedAt)).catch(() => null);
      if (told !== null) return told;
    }
    const { code, message, param } = errorBody(error).error;
    const { first } = this.#maker.take();
    return `event: error\ndata: ${JSON.stringify({ type: "error", sequence_number: first, code, message, param })}\n\n`;
  }

  /** Where the answer was begun and nobody is left to hear of its end. */
  async abandon(endedAt: number): Promise<void> {
    if (this.#maker.state !== "begun" || !this.#keeping.begun) return;
    await this.end(failedEnd(new MargayError("cancelled"), endedAt)).catch(() => {});
  }

  #take(): string {
    return this.#maker.take().events.join("");
  }
}
