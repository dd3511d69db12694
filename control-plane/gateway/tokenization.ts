import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { Prompts } from "../chat/prompts.ts";
import type { ServedModel } from "../chat/served-model.ts";
import { callerOf, requireModel } from "./auth.ts";
import { ChatMessage, MAX_TOOLS, Tool } from "./chat-schema.ts";
import { findModel, type GenerationHost, parseRequest } from "./generation-host.ts";
import { refuse } from "./http-errors.ts";
import { flag, must, onlyNeutral, wholeFrom } from "./must.ts";
import { checkIds } from "./sampling-params.ts";
import { underLimits } from "./under-limits.ts";

/** Most characters of one text; a token has at least one byte, so no prompt that fits any model is longer than this. */
const MAX_CHARACTERS = 16_777_216;

const modelRule = must("be the name of a model (see /v1/models)");
const model = z
  .string(modelRule)
  .min(1, modelRule)
  .nullish()
  .meta({ description: "May be left out where one model is served." });

/** `POST /tokenize`, in vLLM's form: a text, or a conversation as the chat's template writes it. */
export const TokenizeRequest = z.object({
  model,
  prompt: z
    .string(must("be a string"))
    .max(MAX_CHARACTERS, must(`have at most ${MAX_CHARACTERS} characters`))
    .nullish(),
  messages: z.array(ChatMessage, must("be a list of messages")).min(1, must("hold at least one message")).nullish(),
  tools: z.array(Tool, must("be a list of tools")).max(MAX_TOOLS).nullish(),
  chat_template_kwargs: z.record(z.string(), z.unknown(), must("be an object of template arguments")).nullish(),
  add_special_tokens: flag().nullish().meta({ description: "Not obeyed: these models add none to a text." }),
  add_generation_prompt: onlyNeutral(true),
  continue_final_message: onlyNeutral(false),
  return_token_strs: flag().nullish(),
});

/** `POST /detokenize`. */
export const DetokenizeRequest = z.object({
  model,
  tokens: z.array(wholeFrom(0), must("be a list of token ids")).max(MAX_CHARACTERS),
});

export const TokenizeResponse = z.strictObject({
  count: z.int(),
  max_model_len: z.int(),
  tokens: z.array(z.int()),
  token_strs: z.array(z.string()).nullable(),
});
export const DetokenizeResponse = z.strictObject({ prompt: z.string() });

/** vLLM's `/tokenize` and `/detokenize`. */
export function addTokenizationRoutes(app: FastifyInstance, host: GenerationHost): void {
  const { models, prompts, tenancy } = host;
  app.post("/tokenize", async (request, reply) => {
    const body = parseRequest(TokenizeRequest, request.body);
    const served = theModel(models, body.model);
    requireModel(callerOf(request), served.name);
    const tokens = await underLimits(tenancy, request, reply, served, () => tokensOf(prompts, served, body));
    const strings = body.return_token_strs === true ? Array.from(tokens, (id) => served.tokenizer.tokenText(id)) : null;
    return { count: tokens.length, max_model_len: served.contextLength, tokens: [...tokens], token_strs: strings };
  });
  app.post("/detokenize", async (request, reply) => {
    const body = parseRequest(DetokenizeRequest, request.body);
    const served = theModel(models, body.model);
    requireModel(callerOf(request), served.name);
    checkIds(body.tokens, served, "tokens");
    const prompt = await underLimits(tenancy, request, reply, served, () => served.tokenizer.decode(body.tokens));
    return { prompt };
  });
}

function theModel(models: ReadonlyMap<string, ServedModel>, name: string | null | undefined): ServedModel {
  if (typeof name === "string") return findModel(models, name);
  const [only, another] = models.values();
  if (only === undefined || another !== undefined) throw refuse("model", "is required where several models are served");
  return only;
}

async function tokensOf(
  prompts: Prompts,
  served: ServedModel,
  body: z.infer<typeof TokenizeRequest>,
): Promise<Int32Array> {
  const { prompt, messages, tools, chat_template_kwargs: templateKwargs } = body;
  if (typeof prompt === "string") {
    if (messages) throw refuse("messages", "must be left out together with prompt");
    return prompts.text(served, prompt, Number.POSITIVE_INFINITY);
  }
  if (!messages) throw refuse("prompt", "is required and must be a string, unless there are messages");
  const options = { tools: tools ?? null, templateKwargs: templateKwargs ?? {} };
  return (await prompts.chat(served, messages, options)).tokens;
}
