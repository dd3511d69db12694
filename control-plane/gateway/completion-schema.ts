import type { z } from "zod";
import { MAX_TOP_LOGPROBS } from "#protocol/request.ts";
import { flag, onlyNeutral, wholeFrom, wholeWithin } from "./must.ts";
import { PromptField } from "./prompt-schema.ts";
import { SamplingFields } from "./sampling-schema.ts";

/** `POST /v1/completions`. */
export const CompletionRequest = SamplingFields.extend({
  prompt: PromptField,
  logprobs: wholeWithin(0, MAX_TOP_LOGPROBS).nullish(),
  echo: flag().nullish(),
  suffix: onlyNeutral(""),
  best_of: wholeFrom(1).nullish().meta({ description: "Accepted only when equal to n." }),
});
export type CompletionRequest = z.infer<typeof CompletionRequest>;
