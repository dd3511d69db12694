import type { FastifyRequest } from "fastify";
import type { z } from "zod";
import type { Constraint } from "#protocol/constraint.ts";
import { MargayError } from "#protocol/errors.ts";
import type { ModelName, RequestId } from "#protocol/ids.ts";
import type { Generation } from "#protocol/request.ts";
import type { Random } from "#service/clock.ts";
import { MAX_MESSAGES } from "../chat/messages.ts";
import type { Prompts } from "../chat/prompts.ts";
import type { ServedModel } from "../chat/served-model.ts";
import { MAX_TOOLS } from "./chat-schema.ts";
import type { ExchangeHost } from "./exchange.ts";
import { refuse, requestFault } from "./http-errors.ts";
import { baseSeed, choiceSeed, type Prompt, planGeneration } from "./sampling-params.ts";
import { MAX_STOP_TOKENS, MAX_STOPS, type SamplingFields } from "./sampling-schema.ts";
import type { Vet } from "./structured-output.ts";

/** What the generation APIs are given. */
export interface GenerationHost extends ExchangeHost {
  readonly random: Random;
  readonly models: ReadonlyMap<string, ServedModel>;
  /** Largest `n`. */
  readonly maxN: number;
  /** Largest `x-margay-thinkers`. */
  readonly maxThinkers: number;
  readonly vet: Vet;
  readonly prompts: Prompts;
}

/** Most choices of one request over all its prompts. A request that could fill the queue alone would always be refused. */
const MAX_CHOICES = 256;

/** Lists whose length is looked at before their entries: one of a million faults is answered as fast as any other. */
const LIST_LIMITS = { messages: MAX_MESSAGES, tools: MAX_TOOLS, stop: MAX_STOPS, stop_token_ids: MAX_STOP_TOKENS };

/** Parses a body; throws `invalid_request` that names the first field at fault. */
export function parseRequest<S extends z.ZodType>(schema: S, body: unknown): z.output<S> {
  for (const [param, limit] of Object.entries(LIST_LIMITS)) {
    const list = (body as Readonly<Record<string, unknown>> | null | undefined)?.[param];
    if (Array.isArray(list) && list.length > limit) throw refuse(param, `must hold at most ${limit} entries`);
  }
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  throw requestFault(parsed.error);
}

/** Throws `model_not_found`. */
export function findModel(models: ReadonlyMap<string, ServedModel>, name: string): ServedModel {
  const model = models.get(name as ModelName);
  if (model !== undefined) return model;
  const known = [...models.keys()].map((one) => `"${one}"`).join(", ");
  throw new MargayError("model_not_found", `The model does not exist; this server has ${known}.`, { param: "model" });
}

/** The id of a request, made when it arrived (see gateway.ts). */
export function requestIdOf(request: FastifyRequest): RequestId {
  return request.id as RequestId;
}

/** `stop` as a list. */
export function stopStrings(fields: SamplingFields): readonly string[] {
  return typeof fields.stop === "string" ? [fields.stop] : (fields.stop ?? []);
}

/** One generation per choice: `n` for each prompt in turn, alike but for their seeds. */
export function planChoices(
  host: GenerationHost,
  model: ServedModel,
  fields: SamplingFields,
  prompts: readonly Prompt[],
  topLogprobs: number,
  constraint: Constraint | null,
): readonly Generation[] {
  const n = fields.n ?? 1;
  if (n > host.maxN) throw refuse("n", `must be at most ${host.maxN}`);
  if (n * prompts.length > MAX_CHOICES) {
    throw refuse("n", `must be at most ${Math.floor(MAX_CHOICES / prompts.length)} for ${prompts.length} prompts`);
  }
  const seed = fields.seed === null || fields.seed === undefined ? host.random.seed() : baseSeed(fields.seed);
  return prompts.flatMap((prompt) => {
    const plan = planGeneration(model, fields, prompt, { topLogprobs, seed, constraint });
    return Array.from({ length: n }, (_, index) =>
      index === 0 ? plan : { ...plan, sampling: { ...plan.sampling, seed: choiceSeed(seed, index) } },
    );
  });
}
