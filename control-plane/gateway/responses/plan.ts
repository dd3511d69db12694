import type { Generation } from "#protocol/request.ts";
import { AnswerStream } from "../../chat/answer-stream.ts";
import type { ServedModel } from "../../chat/served-model.ts";
import { THINKING, type Tool, type ToolChoice } from "../chat-schema.ts";
import { type GenerationHost, planChoices } from "../generation-host.ts";
import { refuse } from "../http-errors.ts";
import type { SamplingFields } from "../sampling-schema.ts";
import { constraintOf } from "../structured-output.ts";
import { conversationOf, inOwnWords } from "./conversation.ts";
import type { InputItem } from "./input-items.ts";
import type { ResponsesRequest } from "./request-schema.ts";

/** How tokens of an answer are read: all that `answerStream` needs beside the model. */
export interface Reading {
  readonly stop: readonly string[];
  readonly stopTokens: readonly number[];
  readonly startsInReasoning: boolean;
  readonly tools: readonly Tool[] | null;
}

/** What a request asks of the flow, and how its answer is read. */
export interface ResponsePlan {
  readonly generation: Generation;
  readonly reading: Reading;
}

/** Plans one response. Throws `invalid_request` or `context_length_exceeded`, naming the field. */
export async function planResponse(
  host: GenerationHost,
  model: ServedModel,
  body: ResponsesRequest,
  earlier: readonly InputItem[],
): Promise<ResponsePlan> {
  try {
    return await planChat(host, model, body, earlier);
  } catch (error) {
    throw inOwnWords(error);
  }
}

/** The reader of an answer's tokens. It gives calls no ids: those of a response are made from its own. */
export function answerStream(model: ServedModel, reading: Reading): AnswerStream {
  return new AnswerStream({ model, ...reading, parse: "chat" });
}

async function planChat(
  host: GenerationHost,
  model: ServedModel,
  body: ResponsesRequest,
  earlier: readonly InputItem[],
): Promise<ResponsePlan> {
  const { tools, choice } = offered(body);
  const effort = body.reasoning?.effort ?? null;
  const templateKwargs = effort === null ? {} : { enable_thinking: THINKING[effort] };
  const messages = conversationOf(body.instructions ?? null, earlier, body.input);
  const { tokens, startsInReasoning } = await host.prompts.chat(model, messages, { tools, templateKwargs });
  const fields = samplingFields(body);
  const constraint = await constraintOf(host.vet, model, fields, { tools, choice, startsInReasoning });
  const [generation] = planChoices(host, model, fields, [{ tokens, param: "input" }], -1, constraint);
  const stop = typeof body.stop === "string" ? [body.stop] : (body.stop ?? []);
  const stopTokens = [...generation!.sampling.stopTokens];
  return { generation: generation!, reading: { stop, stopTokens, startsInReasoning, tools } };
}

/** The tools that may be called, in the chat's form; null: none. */
function offered(body: ResponsesRequest): { readonly tools: readonly Tool[] | null; readonly choice: ToolChoice } {
  const { tools, tool_choice: asked } = body;
  const choice = asked ?? "auto";
  if (choice === "none" || !tools?.length) return { tools: null, choice: !tools?.length ? choiceOf(choice) : "none" };
  const all = tools.map(({ name, description, parameters, strict }) => ({
    type: "function" as const,
    function: { name, description, parameters, strict },
  }));
  if (typeof choice === "string" || choice.type === "function") return { tools: all, choice: choiceOf(choice) };
  const allowed = new Set(choice.tools.map(({ name }) => name));
  for (const [i, { name }] of choice.tools.entries()) {
    if (!tools.some((tool) => tool.name === name)) {
      throw refuse(`tool_choice.tools[${i}].name`, "must be the name of one of the tools");
    }
  }
  return { tools: all.filter((tool) => allowed.has(tool.function.name)), choice: choice.mode };
}

function choiceOf(choice: NonNullable<ResponsesRequest["tool_choice"]>): ToolChoice {
  if (typeof choice === "string") return choice;
  return choice.type === "function" ? { type: "function", function: { name: choice.name } } : choice.mode;
}

/** The request in the fields of the other APIs. */
function samplingFields(body: ResponsesRequest): SamplingFields {
  const { top_k, min_p, seed, stop, stop_token_ids, min_tokens, ignore_eos, priority } = body;
  const { repetition_penalty, frequency_penalty, presence_penalty, logit_bias } = body;
  const format = body.text?.format ?? null;
  const { model, temperature, top_p } = body;
  return {
    ...{ model, temperature, top_p, top_k, min_p, seed, stop, stop_token_ids, min_tokens, ignore_eos, priority },
    ...{ repetition_penalty, frequency_penalty, presence_penalty, logit_bias },
    max_tokens: body.max_output_tokens,
    ...(format === null ? {} : { response_format: chatFormat(format) }),
  };
}

function chatFormat(format: NonNullable<NonNullable<ResponsesRequest["text"]>["format"]>) {
  if (format.type !== "json_schema") return format;
  const { type, ...json_schema } = format;
  return { type, json_schema };
}
