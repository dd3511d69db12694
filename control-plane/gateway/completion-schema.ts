import { z } from "zod";
import { MAX_TOP_LOGPROBS } from "#protocol/request.ts";
import { flag, must, onlyNeutral, wholeFrom, wholeWithin } from "./must.ts";
import { SamplingFields } from "./sampling-schema.ts";

/** Most prompts of one request. */
export const MAX_PROMPTS = 128;

const promptRule = must(`be a string, a list of token ids, or a list of 1 to ${MAX_PROMPTS} of either`);
const tokens = z.array(wholeFrom(0)).min(1, must("hold at least one token id"));

/** `POST /v1/completions`. */
export const CompletionRequest = SamplingFields.extend({
  prompt: z.union(
    [
      z.string().min(1, must("not be empty")),
      z
        .array(z.string().min(1, must("not be empty")))
        .min(1, promptRule)
        .max(MAX_PROMPTS, promptRule),
      tokens,
      z.array(tokens).min(1, promptRule).max(MAX_PROMPTS, promptRule),
    ],
    promptRule,
  ),
  logprobs: wholeWithin(0, MAX_TOP_LOGPROBS).nullish(),
  echo: flag().nullish(),
  suffix: onlyNeutral(""),
  best_of: wholeFrom(1).nullish().meta({ description: "Accepted only when equal to n." }),
});
export type CompletionRequest = z.infer<typeof CompletionRequest>;
