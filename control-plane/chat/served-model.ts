import { stat } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import type { ModelName } from "#protocol/ids.ts";
import { CheckpointError, readCheckpointJson } from "../tokenizer/checkpoint-file.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { type ChatTemplate, loadChatTemplate } from "./templates.ts";

/** What the checkpoint suggests for requests that do not say; null: it does not say either. */
export interface GenerationDefaults {
  /** 0 where the checkpoint asks for greedy decoding. */
  readonly temperature: number | null;
  readonly topP: number | null;
  /** 0 keeps all tokens. */
  readonly topK: number | null;
  readonly minP: number | null;
  readonly maxNewTokens: number | null;
  readonly repetitionPenalty: number | null;
}

/** A checkpoint as the gateway sees it: all text, no weights. Immutable. */
export interface ServedModel {
  readonly name: ModelName;
  readonly folder: string;
  /** When the checkpoint's config was written, in Unix seconds. */
  readonly created: number;
  /** Longest prompt plus output, in tokens. */
  readonly contextLength: number;
  /** Rows of the output layer: valid token ids are below. */
  readonly vocabSize: number;
  readonly eosTokens: readonly number[];
  readonly defaults: GenerationDefaults;
  readonly tokenizer: Tokenizer;
  /** null: the checkpoint brings none, so there is no chat, only completions. */
  readonly template: ChatTemplate | null;
}

const CONFIG = "config.json";
const GENERATION_CONFIG = "generation_config.json";

const TokenIds = z.union([z.int().min(0), z.array(z.int().min(0)).min(1)]).nullish();
const Config = z.looseObject({
  max_position_embeddings: z.int().min(1),
  vocab_size: z.int().min(1),
  eos_token_id: TokenIds,
});
const GenerationConfig = z.looseObject({
  do_sample: z.boolean().nullish(),
  temperature: z.number().min(0).max(100).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  top_k: z.int().min(-1).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  max_new_tokens: z.int().min(1).nullish(),
  repetition_penalty: z.number().gt(0).max(10).nullish(),
  eos_token_id: TokenIds,
});

/** Reads what serving a checkpoint needs besides its weights. Throws `CheckpointError`, one sentence with file and field. */
export async function loadServedModel(name: ModelName, folder: string): Promise<ServedModel> {
  const origin = join(folder, CONFIG);
  const configJson = await readCheckpointJson(folder, CONFIG);
  if (configJson === null) throw new CheckpointError(`${origin} does not exist.`);
  const config = parse(Config, configJson, origin);
  const generationJson = (await readCheckpointJson(folder, GENERATION_CONFIG)) ?? {};
  const generationOrigin = join(folder, GENERATION_CONFIG);
  const generation = parse(GenerationConfig, generationJson, generationOrigin);
  const eos = generation.eos_token_id ?? config.eos_token_id ?? null;
  if (eos === null) throw new CheckpointError(`${origin}: eos_token_id is missing.`);
  const eosTokens = [eos].flat();
  const outside = eosTokens.find((id) => id >= config.vocab_size);
  if (outside !== undefined) {
    const from = (generation.eos_token_id ?? null) === null ? origin : generationOrigin;
    throw new CheckpointError(`${from}: eos_token_id ${outside} is not below vocab_size ${config.vocab_size}.`);
  }
  const [tokenizer, template, { mtimeMs }] = await Promise.all([
    Tokenizer.load(folder),
    loadChatTemplate(folder),
    stat(origin),
  ]);
  if (tokenizer.vocabSize > config.vocab_size) {
    throw new CheckpointError(
      `${join(folder, "tokenizer.json")}: token ${tokenizer.vocabSize - 1} is not below vocab_size ${config.vocab_size}.`,
    );
  }
  return {
    name,
    folder,
    created: Math.floor(mtimeMs / 1000),
    contextLength: config.max_position_embeddings,
    vocabSize: config.vocab_size,
    eosTokens,
    defaults: {
      temperature: generation.do_sample === false ? 0 : (generation.temperature ?? null),
      topP: generation.top_p ?? null,
      topK: generation.top_k === -1 ? 0 : (generation.top_k ?? null),
      minP: generation.min_p ?? null,
      maxNewTokens: generation.max_new_tokens ?? null,
      repetitionPenalty: generation.repetition_penalty ?? null,
    },
    tokenizer,
    template,
  };
}

function parse<S extends z.ZodType>(schema: S, value: unknown, origin: string): z.output<S> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new CheckpointError(`${origin}: ${issue?.path.join(".") ?? ""} is not valid (${issue?.message ?? "unknown"}).`);
}
