import { z } from "zod";
import { ModelName } from "./ids.ts";

/**
 * What two ranks must agree on before KV may pass between them. `modelHash` is the digest of config and tensors;
 * `layout` spells dtype, attentions, row width and block size of the pool. `numerics` says in words what of the settings
 * the hash holds, so that a refusal can name it.
 */
export const ModelCard = z.object({
  name: ModelName,
  modelHash: z.string().min(1).max(128),
  layout: z.string().min(1).max(128),
  numerics: z.string().min(1).max(128),
  vocabSize: z.int().min(1),
  /** Longest prompt plus output, in tokens. */
  contextLength: z.int().min(1),
  attentions: z.int().min(1),
  /** Bytes of one page: BLOCK_TOKENS rows of one attention. */
  pageBytes: z.int().min(1),
});
export type ModelCard = z.infer<typeof ModelCard>;

/** True when KV made by one may be read by the other. */
export function compatible(a: ModelCard, b: ModelCard): boolean {
  return a.modelHash === b.modelHash && a.layout === b.layout;
}
