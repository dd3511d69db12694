import { z } from "zod";

const Stage = z.looseObject({ type: z.string() });
type Stage = z.infer<typeof Stage>;

/** An entry that is matched verbatim in text, before the model splits it. */
const AddedToken = z.looseObject({
  id: z.int().min(0),
  content: z.string().min(1),
  lstrip: z.boolean().default(false),
  rstrip: z.boolean().default(false),
  special: z.boolean().default(false),
});
export type AddedToken = z.infer<typeof AddedToken>;

/** The parts of `tokenizer.json` that matter here; everything else passes through to the library. */
export const TokenizerJson = z.looseObject({
  added_tokens: z.array(AddedToken).default([]),
  normalizer: Stage.nullable().default(null),
  pre_tokenizer: Stage.nullable().default(null),
  decoder: Stage.nullable().default(null),
  model: z.looseObject({
    type: z.literal("BPE"),
    vocab: z.record(z.string(), z.int().min(0)),
    merges: z.array(z.union([z.string(), z.tuple([z.string(), z.string()])])),
    byte_fallback: z.boolean().default(false),
  }),
});
export type TokenizerJson = z.infer<typeof TokenizerJson>;

const WORDS = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

const isolate = (pattern: string): Stage => ({
  type: "Split",
  pattern: { Regex: pattern },
  behavior: "Isolated",
  invert: false,
});

function stagesOf(stage: Stage | null): readonly Stage[] {
  if (stage === null) return [];
  if (stage.type !== "Sequence") return [stage];
  return z.array(Stage).parse(stage.pretokenizers).flatMap(stagesOf);
}

/**
 * The pre-tokenizer without its last stage `ByteLevel`, so that it yields pieces of text and not of the byte alphabet;
 * null when it does not end in one, or in one that adds a space.
 *
 * The library differs from the reference in two stages: its `Digits` knows ASCII digits only, and the pattern of its
 * `ByteLevel` misses U+0085 as white space. Both are spelled here as a `Split`, whose pattern it reads as the reference
 * does.
 */
export function piecesOnly(stage: Stage | null): Stage | null {
  const stages = stagesOf(stage);
  const last = stages.at(-1);
  if (last?.type !== "ByteLevel" || last.add_prefix_space === true) return null;
  const before = stages.slice(0, -1);
  if (before.some((one) => one.type === "ByteLevel")) return null;
  const pretokenizers = before.map((one) =>
    one.type === "Digits" ? isolate(one.individual_digits === true ? "\\p{N}" : "\\p{N}+") : one,
  );
  if (last.use_regex !== false) pretokenizers.push(isolate(WORDS));
  return { type: "Sequence", pretokenizers };
}
