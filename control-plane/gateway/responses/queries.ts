import { z } from "zod";
import { must, onlyEmpty, wholeFrom } from "../must.ts";

const switchRule = must('be "true" or "false"');
const word = z.literal(["true", "false", "1", "0"], switchRule).transform((value) => value === "true" || value === "1");
const wholeWord = (rule: { readonly error: (issue: { readonly input?: unknown }) => string }) =>
  z
    .string(rule)
    .regex(/^\d{1,15}$/, rule)
    .transform(Number);

/** The query of `GET /v1/responses/{response_id}`. */
export const RetrieveQuery = z.object({
  stream: word.optional(),
  starting_after: wholeWord(must("be the number of an event")).optional(),
  include_obfuscation: word.optional(),
  include: onlyEmpty(),
});

/** The query of `GET /v1/responses/{response_id}/input_items`. */
export const ItemsQuery = z.object({
  limit: wholeWord(must("be a whole number from 1 to 100"))
    .pipe(wholeFrom(1).max(100, must("be a whole number from 1 to 100")))
    .optional(),
  order: z.literal(["asc", "desc"], must('be "asc" or "desc"')).optional(),
  after: z.string(must("be the id of an item")).optional(),
  include: onlyEmpty(),
});
