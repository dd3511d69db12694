import { z } from "zod";
import { MAX_LOGIT_BIASES, MAX_PRIORITY } from "#protocol/request.ts";
import { flag, must, numberWithin, onlyEmpty, onlyNeutral, wholeFrom } from "./must.ts";
import { StructuredFields } from "./structured-schema.ts";

/** Most stop strings of one request, and the most characters of one. */
export const MAX_STOPS = 4;
export const MAX_STOP_CHARACTERS = 512;
/** Most entries of `stop_token_ids`. */
export const MAX_STOP_TOKENS = 64;

const stopRule = must(
  `be a string or a list of at most ${MAX_STOPS} strings, each of 1 to ${MAX_STOP_CHARACTERS} characters`,
);
const stopString = z.string(stopRule).min(1, stopRule).max(MAX_STOP_CHARACTERS, stopRule);
const biasRule = must("map token ids to numbers from -100 to 100");
const seedRule = must("be a whole number");

/**
 * The fields that both generation APIs read, in the spelling of the OpenAI API and of vLLM's extensions to it. null
 * means the same as a missing field: the model's own default (generation_config.json).
 */
export const SamplingFields = z.object({
  model: z.string(must("be the name of a model (see /v1/models)")).min(1, must("be the name of a model")),
  max_tokens: wholeFrom(1).nullish(),
  max_completion_tokens: wholeFrom(1).nullish().meta({ description: "Wins over max_tokens." }),
  temperature: numberWithin(0, 2).nullish().meta({ description: "0 is greedy." }),
  top_p: numberWithin(0, 1).nullish(),
  top_k: wholeFrom(-1).nullish().meta({ description: "-1 and 0 keep all tokens." }),
  min_p: numberWithin(0, 1).nullish(),
  seed: z.int(seedRule).nullish(),
  frequency_penalty: numberWithin(-2, 2).nullish(),
  presence_penalty: numberWithin(-2, 2).nullish(),
  repetition_penalty: z
    .number(must("be a number above 0 and at most 10"))
    .gt(0, must("be a number above 0 and at most 10"))
    .max(10, must("be a number above 0 and at most 10"))
    .nullish(),
  logit_bias: z
    .record(
      z.string().regex(/^\d{1,9}$/, biasRule),
      z.number(biasRule).min(-100, biasRule).max(100, biasRule),
      must("be an object that maps token ids to numbers from -100 to 100"),
    )
    .refine((bias) => Object.keys(bias).length <= MAX_LOGIT_BIASES, must(`have at most ${MAX_LOGIT_BIASES} entries`))
    .nullish(),
  stop: z.union([stopString, z.array(stopString, stopRule).max(MAX_STOPS)], stopRule).nullish(),
  stop_token_ids: z
    .array(wholeFrom(0), must(`be a list of at most ${MAX_STOP_TOKENS} token ids`))
    .max(MAX_STOP_TOKENS)
    .nullish(),
  priority: z.int().min(-MAX_PRIORITY).max(MAX_PRIORITY).nullish().meta({
    description: "The lower, the less likely a request has to wait for KV blocks that others hold.",
  }),
  min_tokens: wholeFrom(0).nullish().meta({ description: "End tokens are not obeyed before." }),
  ignore_eos: flag().nullish().meta({ description: "Generate until max_tokens." }),
  n: wholeFrom(1).nullish(),
  stream: flag().nullish(),
  stream_options: z
    .object({ include_usage: flag().nullish(), include_obfuscation: flag().nullish() }, must("be an object"))
    .nullish(),
  user: z.string(must("be a string")).nullish(),
  metadata: z.record(z.string(), z.string(must("be a string")), must("be an object of strings")).nullish(),
  store: onlyNeutral(false),
  service_tier: z
    .literal(["auto", "default", "priority", "flex"], must('be "auto", "default", "priority" or "flex"'))
    .nullish()
    .meta({ description: '"priority" goes before and "flex" after others, as far as the tenant may ask for it.' }),
  use_beam_search: onlyNeutral(false),
  length_penalty: onlyNeutral(1),
  prompt_logprobs: onlyNeutral(),
  truncate_prompt_tokens: onlyNeutral(),
  include_stop_str_in_output: onlyNeutral(false),
  skip_special_tokens: onlyNeutral(true),
  bad_words: onlyEmpty(),
  allowed_token_ids: onlyNeutral(),
  logits_processors: onlyEmpty(),
  ...StructuredFields.shape,
});
export type SamplingFields = z.infer<typeof SamplingFields>;
