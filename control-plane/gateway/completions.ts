import type { FastifyReply, FastifyRequest } from "fastify";
import { AnswerStream } from "../chat/answer-stream.ts";
import type { ServedModel } from "../chat/served-model.ts";
import { chunkFrame } from "./chat-stream.ts";
import { usageOf } from "./choice.ts";
import { CompletionChoice } from "./completion-choice.ts";
import { CompletionRequest } from "./completion-schema.ts";
import { Exchange } from "./exchange.ts";
import {
  findModel,
  type GenerationHost,
  parseRequest,
  planChoices,
  requestIdOf,
  stopStrings,
} from "./generation-host.ts";
import { refuse } from "./http-errors.ts";
import { endTokens } from "./logprobs.ts";
import type { PromptInput } from "./prompt-schema.ts";
import { checkIds, type Prompt } from "./sampling-params.ts";
import { OPENAI_STREAM } from "./sse.ts";
import { storyHeaders } from "./story.ts";
import { constraintOf } from "./structured-output.ts";
import { refuseThinkers } from "./thinkers.ts";

/** Answers `POST /v1/completions`; throws `MargayError` while nothing was sent. */
export async function completions(host: GenerationHost, request: FastifyRequest, reply: FastifyReply) {
  refuseThinkers(request.headers);
  const body = parseRequest(CompletionRequest, request.body);
  const model = findModel(host.models, body.model);
  const n = body.n ?? 1;
  if ((body.best_of ?? n) !== n) throw refuse("best_of", "must be left out or equal n: it is not supported");
  if (body.echo === true && (body.logprobs ?? null) !== null) {
    throw refuse("echo", "must not be true together with logprobs: those of a prompt are not supported");
  }
  const prompts = await Promise.all(body.prompt.map((one) => readPrompt(host, model, one)));
  const constraint = await constraintOf(host.vet, model, body, null);
  const generations = planChoices(host, model, body, prompts, body.logprobs ?? -1, constraint);
  const { stopTokens, topLogprobs } = generations[0]!.sampling;

  const requestId = requestIdOf(request);
  const id = `cmpl-${requestId}`;
  const created = Math.floor(host.clock.now() / 1000);
  const streamed = body.stream === true;
  const includeUsage = streamed && body.stream_options?.include_usage === true;
  const frame = streamed ? chunkFrame(id, "text_completion", created, model.name, includeUsage) : null;
  const isEnd = endTokens(model, stopTokens);
  const stop = stopStrings(body);
  const sinks = generations.map((_, index) => {
    const answer = new AnswerStream({
      ...{ model, stop, stopTokens: [...stopTokens], tools: null, startsInReasoning: false },
      parse: "text",
    });
    const echo = body.echo === true ? prompts[Math.floor(index / n)]!.text() : "";
    return new CompletionChoice({ frame, index, answer, model, isEnd, logprobs: topLogprobs >= 0, echo });
  });
  const promptLengths = prompts.map((prompt) => prompt.tokens.length);
  const exchange = new Exchange(host, { requestId, model, promptLengths, reply, streamed, dialect: OPENAI_STREAM });
  const settled = await exchange.run(generations, sinks, (ended) => {
    if (!includeUsage) return "";
    const usage = usageOf(promptLengths, ended, null);
    return `data: ${JSON.stringify({ id, object: "text_completion", created, model: model.name, choices: [], usage })}\n\n`;
  });
  if (settled === null || streamed) return;
  reply.headers(storyHeaders(settled));
  return {
    id,
    object: "text_completion",
    created,
    model: model.name,
    choices: sinks.map((sink) => sink.choice()),
    usage: usageOf(promptLengths, settled, null),
  };
}

interface EchoPrompt extends Prompt {
  /** The prompt as text, for `echo`. */
  readonly text: () => string;
}

async function readPrompt(
  host: GenerationHost,
  model: ServedModel,
  { param, input }: PromptInput,
): Promise<EchoPrompt> {
  if (typeof input === "string") {
    return { tokens: await host.prompts.text(model, input, model.contextLength), param, text: () => input };
  }
  checkIds(input, model, param);
  return { tokens: input, param, text: () => model.tokenizer.decode(input) };
}
