import { z } from "zod";
import { Tokens } from "./tokens.ts";

/** Most characters of an expression or a grammar. */
export const MAX_GRAMMAR_CHARACTERS = 65_536;

const text = z.string().min(1).max(MAX_GRAMMAR_CHARACTERS);

/** A language of texts. */
export const Grammar = z.discriminatedUnion("kind", [
  /** What a regular expression matches as a whole. */
  z.object({ kind: z.literal("regex"), text }),
  /** What `root` of an EBNF grammar derives. */
  z.object({ kind: z.literal("ebnf"), text }),
]);
export type Grammar = z.infer<typeof Grammar>;

/** What the generated tokens of a request must be: free ones up to a mark, a prefix, a text, a suffix, the end. */
export const Constraint = z.object({
  /** The free part ends with this token; null: there is none. */
  freeUntil: z.int().min(0).nullable(),
  prefix: Tokens,
  grammar: Grammar,
  suffix: Tokens,
  /** Tokens one of which ends the request behind all that. */
  ends: Tokens,
  /** What the first token may be, a bit each of the vocabulary; null: whoever decodes is to find out. */
  first: Tokens.nullable(),
});
export type Constraint = z.infer<typeof Constraint>;

/** A mask of so many words that allows these tokens alone, or all others. */
export function maskOf(words: number, ids: readonly number[], which: "only" | "all but"): Uint32Array {
  const mask = new Uint32Array(words).fill(which === "only" ? 0 : 0xffff_ffff);
  for (const id of ids) {
    if (which === "only") mask[id >>> 5]! |= 1 << (id & 31);
    else mask[id >>> 5]! &= ~(1 << (id & 31));
  }
  return mask;
}
