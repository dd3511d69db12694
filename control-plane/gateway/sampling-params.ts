import { MargayError } from "#protocol/errors.ts";
import type { Generation, Sampling } from "#protocol/request.ts";
import type { ServedModel } from "../chat/served-model.ts";
import { refuse } from "./http-errors.ts";
import type { SamplingFields } from "./sampling-schema.ts";

const SEEDS = 2 ** 53;
/** `top_p` 0 of the OpenAI API keeps the most likely token alone. */
const LEAST_TOP_P = 1e-6;

/** The prompt of a request and the field it came from, for what is said about it. */
export interface Prompt {
  readonly tokens: Int32Array;
  readonly param: string;
}

/**
 * What to generate for one prompt: the request's fields, else the model's own defaults, else neutral values.
 *
 * `max_tokens` above the model's whole context is refused; one that only exceeds the room the prompt leaves is cut down
 * to that room, and the answer then ends with finish reason `length`. Throws `invalid_request` or
 * `context_length_exceeded`.
 */
export function planGeneration(
  model: ServedModel,
  fields: SamplingFields,
  prompt: Prompt,
  { topLogprobs, seed, constraint }: Pick<Sampling, "topLogprobs" | "seed"> & Pick<Generation, "constraint">,
): Generation {
  const maxNewTokens = outputRoom(model, fields, prompt);
  return {
    tokens: prompt.tokens,
    promptLength: prompt.tokens.length,
    maxNewTokens,
    // Clients of other servers know the lower as the first.
    priority: 0 - (fields.priority ?? 0),
    sampling: samplingOf(model, fields, maxNewTokens, topLogprobs, seed),
    constraint,
  };
}

/** The seed of choice `index`: the request's own for the first, then a fixed spread of it. */
export function choiceSeed(seed: number, index: number): number {
  if (index === 0) return seed;
  return Number(BigInt.asUintN(53, BigInt(seed) + BigInt(index) * 0x9e3779b97f4a7c15n));
}

/** A client's seed (any safe integer) as one of ours, which are not negative. */
export function baseSeed(seed: number): number {
  return seed < 0 ? seed + SEEDS : seed;
}

function outputRoom(model: ServedModel, fields: SamplingFields, prompt: Prompt): number {
  const limit = model.contextLength;
  const length = prompt.tokens.length;
  const newer = fields.max_completion_tokens ?? null;
  const asked = newer ?? fields.max_tokens ?? null;
  const param = newer === null ? "max_tokens" : "max_completion_tokens";
  if (asked !== null && asked > limit) {
    throw refuse(param, `must be at most ${limit}, the context length of ${model.name}`);
  }
  if (length === 0) throw refuse(prompt.param, "must hold at least one token");
  if (length >= limit) {
    throw new MargayError(
      "context_length_exceeded",
      `${prompt.param} has ${length > limit ? `more than ${limit}` : length} tokens; ${model.name} takes at most ${limit - 1}, for its context of ${limit} tokens holds the output too.`,
      { param: prompt.param },
    );
  }
  return Math.min(asked ?? model.defaults.maxNewTokens ?? limit, limit - length);
}

function samplingOf(
  model: ServedModel,
  fields: SamplingFields,
  maxNewTokens: number,
  topLogprobs: number,
  seed: number,
): Sampling {
  const { defaults } = model;
  const bias = Object.entries(fields.logit_bias ?? {});
  const biasIds = Int32Array.from(bias, ([id]) => Number(id));
  const stopTokens = Int32Array.from(fields.stop_token_ids ?? []);
  checkIds(biasIds, model, "logit_bias");
  checkIds(stopTokens, model, "stop_token_ids");
  const minNewTokens = fields.min_tokens ?? 0;
  const asked = fields.max_completion_tokens ?? fields.max_tokens ?? null;
  if (asked !== null && minNewTokens > asked) throw refuse("min_tokens", `must be at most max_tokens, here ${asked}`);
  const ignoreEnd = fields.ignore_eos === true;
  if (ignoreEnd && stopTokens.length > 0) throw refuse("ignore_eos", "must not be true together with stop_token_ids");
  return {
    temperature: fields.temperature ?? defaults.temperature ?? 1,
    topK: Math.max(0, fields.top_k ?? defaults.topK ?? 0),
    topP: Math.max(LEAST_TOP_P, fields.top_p ?? defaults.topP ?? 1),
    minP: fields.min_p ?? defaults.minP ?? 0,
    seed,
    frequencyPenalty: fields.frequency_penalty ?? 0,
    presencePenalty: fields.presence_penalty ?? 0,
    repetitionPenalty: fields.repetition_penalty ?? defaults.repetitionPenalty ?? 1,
    logitBiasIds: biasIds,
    logitBiasValues: Float32Array.from(bias, ([, value]) => value),
    stopTokens,
    minNewTokens: ignoreEnd ? maxNewTokens : Math.min(minNewTokens, maxNewTokens),
    topLogprobs,
  };
}

/** Throws `invalid_request` naming the first id outside the model's vocabulary. */
export function checkIds(ids: Int32Array | readonly number[], model: ServedModel, param: string): void {
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i]!;
    if (id < 0 || id >= model.vocabSize) {
      const place = param === "logit_bias" ? `${param}.${id}` : `${param}[${i}]`;
      throw new MargayError("invalid_request", `${place} must be a token id from 0 to ${model.vocabSize - 1}.`, {
        param: place,
      });
    }
  }
}
