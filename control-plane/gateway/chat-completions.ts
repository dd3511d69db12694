import type { FastifyReply, FastifyRequest } from "fastify";
import { AnswerStream } from "../chat/answer-stream.ts";
import type { Settled } from "../flow/request-flow.ts";
import { ChatAnswer } from "./chat-answer.ts";
import { ChatRequest, THINKING } from "./chat-schema.ts";
import { ChatChunks, chunkFrame } from "./chat-stream.ts";
import { ReasoningTokens, type ThoughtfulSink, usageOf } from "./choice.ts";
import { type Closing, Exchange } from "./exchange.ts";
import {
  findModel,
  type GenerationHost,
  parseRequest,
  planChoices,
  requestIdOf,
  stopStrings,
} from "./generation-host.ts";
import { HeavyThinking } from "./heavy-thinking.ts";
import { refuse } from "./http-errors.ts";
import { endTokens } from "./logprobs.ts";
import { OPENAI_STREAM } from "./sse.ts";
import { storyHeaders } from "./story.ts";
import { constraintOf } from "./structured-output.ts";
import { THINKERS_HEADER, thinkersOf } from "./thinkers.ts";

/** Answers `POST /v1/chat/completions`; throws `MargayError` while nothing was sent. */
export async function chatCompletions(host: GenerationHost, request: FastifyRequest, reply: FastifyReply) {
  const body = parseRequest(ChatRequest, request.body);
  const model = findModel(host.models, body.model);
  const tools = body.tool_choice === "none" || !body.tools?.length ? null : body.tools;
  const thinkers = thinkersOf(request.headers, host.maxThinkers);
  if (thinkers !== null && (body.n ?? 1) > 1) throw refuse("n", `must be 1 together with ${THINKERS_HEADER}`);
  const options = { tools, templateKwargs: templateArguments(body, thinkers !== null) };
  const rendered = await host.prompts.chat(model, body.messages, options);
  const prompt = { tokens: rendered.tokens, param: "messages" };
  const shape = { tools, choice: body.tool_choice ?? null, startsInReasoning: rendered.startsInReasoning };
  const constraint = await constraintOf(host.vet, model, body, shape);
  const generations = planChoices(host, model, body, [prompt], logprobsWidth(body), constraint);
  const { stopTokens, topLogprobs } = generations[0]!.sampling;

  const requestId = requestIdOf(request);
  const id = `chatcmpl-${requestId}`;
  const created = Math.floor(host.clock.now() / 1000);
  const streamed = body.stream === true;
  const includeUsage = body.stream_options?.include_usage === true;
  const frame = chunkFrame(id, "chat.completion.chunk", created, model.name, includeUsage);
  const common = { model, isEnd: endTokens(model, stopTokens), logprobs: topLogprobs >= 0 };
  const stop = stopStrings(body);
  const newCallId = () => `call_${host.random.hex(12)}`;
  const { startsInReasoning } = rendered;
  const answer = () =>
    new AnswerStream({
      ...{ model, stop, tools, startsInReasoning, newCallId },
      stopTokens: [...stopTokens],
      parse: "chat",
    });
  const reasoning = generations.map(() => new ReasoningTokens(model, startsInReasoning));
  const promptLengths = [prompt.tokens.length];
  const plan = generations[0]!;
  const heavy =
    thinkers === null
      ? null
      : new HeavyThinking({ host, model, body, options, plan, count: thinkers, newStream: answer });
  const serve = (exchange: Exchange, sinks: readonly ThoughtfulSink[], closing: Closing) =>
    heavy === null
      ? exchange.run(generations, sinks, closing)
      : exchange.conduct(generations, () => heavy.serve(exchange, sinks[0]!), closing);
  const usageFor = (settled: readonly Settled[]) =>
    heavy === null ? usageOf(promptLengths, settled, reasoning) : heavy.usage(reasoning[0]!.count);

  if (streamed) {
    const sinks = generations.map(
      (_, index) => new ChatChunks({ ...common, frame, index, answer: answer(), reasoning: reasoning[index]! }),
    );
    const exchange = new Exchange(host, { requestId, model, promptLengths, reply, streamed, dialect: OPENAI_STREAM });
    await serve(exchange, sinks, (settled) => {
      if (!includeUsage) return "";
      const usage = usageFor(settled);
      return `data: ${JSON.stringify({ id, object: "chat.completion.chunk", created, model: model.name, choices: [], usage })}\n\n`;
    });
    return;
  }
  const sinks = reasoning.map((counter) => new ChatAnswer({ ...common, answer: answer(), reasoning: counter }));
  const exchange = new Exchange(host, { requestId, model, promptLengths, reply, streamed, dialect: OPENAI_STREAM });
  const settled = await serve(exchange, sinks, () => "");
  if (settled === null) return;
  reply.headers(storyHeaders(settled));
  if (heavy !== null) reply.header(THINKERS_HEADER, heavy.listenedTo);
  return {
    id,
    object: "chat.completion",
    created,
    model: model.name,
    choices: sinks.map((sink, index) => sink.choice(index)),
    usage: usageFor(settled),
  };
}

/** How many alternatives to report per token; -1: no log-probabilities. */
function logprobsWidth(body: ChatRequest): number {
  if (body.logprobs === true) return body.top_logprobs ?? 0;
  if ((body.top_logprobs ?? 0) > 0) throw refuse("top_logprobs", "must be left out unless logprobs is true");
  return -1;
}

/**
 * The template's arguments. The most explicit wins: `chat_template_kwargs`, `enable_thinking`, `reasoning_effort`, that
 * thinkers were asked for.
 */
function templateArguments(body: ChatRequest, thinkers: boolean): Readonly<Record<string, unknown>> {
  const effort = body.reasoning_effort ?? null;
  const thinking = body.enable_thinking ?? (effort === null ? thinkers || null : THINKING[effort]);
  return { ...(thinking === null ? {} : { enable_thinking: thinking }), ...body.chat_template_kwargs };
}
