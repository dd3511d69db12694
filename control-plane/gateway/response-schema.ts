import { z } from "zod";

/**
 * What the gateway answers, in OpenAI's shapes. The answers are written by hand for speed; these schemas document them
 * in /openapi.json, and the tests parse every answer with them.
 */
export const ErrorResponse = z.strictObject({
  error: z.strictObject({
    message: z.string(),
    type: z.enum(["invalid_request_error", "rate_limit_error", "insufficient_quota", "server_error", "timeout_error"]),
    param: z.string().nullable(),
    code: z.string(),
    retry_after: z.int().min(1).optional(),
  }),
});

export const UsageResponse = z.strictObject({
  prompt_tokens: z.int(),
  completion_tokens: z.int(),
  total_tokens: z.int(),
  prompt_tokens_details: z.strictObject({ cached_tokens: z.int() }),
  completion_tokens_details: z.strictObject({ reasoning_tokens: z.int() }).optional(),
});

const tokenLogprob = { token: z.string(), logprob: z.number(), bytes: z.array(z.int().min(0).max(255)) };
const chatLogprobs = z
  .strictObject({
    content: z.array(z.strictObject({ ...tokenLogprob, top_logprobs: z.array(z.strictObject(tokenLogprob)) })),
    refusal: z.null(),
  })
  .nullable();
const chatFinish = z.enum(["stop", "length", "tool_calls"]);
const head = { id: z.string(), created: z.int(), model: z.string() };

export const ChatCompletionResponse = z.strictObject({
  ...head,
  object: z.literal("chat.completion"),
  choices: z.array(
    z.strictObject({
      index: z.int(),
      message: z.strictObject({
        role: z.literal("assistant"),
        content: z.string().nullable(),
        reasoning_content: z.string().optional(),
        tool_calls: z
          .array(
            z.strictObject({
              id: z.string().min(1),
              type: z.literal("function"),
              function: z.strictObject({ name: z.string().min(1), arguments: z.string() }),
            }),
          )
          .min(1)
          .optional(),
        refusal: z.null(),
      }),
      logprobs: chatLogprobs,
      finish_reason: chatFinish,
    }),
  ),
  usage: UsageResponse,
});

export const ChatChunkResponse = z.strictObject({
  ...head,
  object: z.literal("chat.completion.chunk"),
  choices: z.array(
    z.strictObject({
      index: z.int(),
      delta: z.strictObject({
        role: z.literal("assistant").optional(),
        content: z.string().optional(),
        reasoning_content: z.string().optional(),
        tool_calls: z
          .array(
            z.strictObject({
              index: z.int(),
              id: z.string().min(1).optional(),
              type: z.literal("function").optional(),
              function: z.strictObject({ name: z.string().min(1).optional(), arguments: z.string() }),
            }),
          )
          .optional(),
      }),
      logprobs: chatLogprobs,
      finish_reason: chatFinish.nullable(),
    }),
  ),
  usage: UsageResponse.nullable().optional(),
});

const completionChoice = {
  index: z.int(),
  text: z.string(),
  logprobs: z
    .strictObject({
      tokens: z.array(z.string()),
      token_logprobs: z.array(z.number()),
      top_logprobs: z.array(z.record(z.string(), z.number())),
      text_offset: z.array(z.int()),
    })
    .nullable(),
};
const finish = z.enum(["stop", "length"]);

export const CompletionResponse = z.strictObject({
  ...head,
  object: z.literal("text_completion"),
  choices: z.array(z.strictObject({ ...completionChoice, finish_reason: finish })),
  usage: UsageResponse,
});

export const CompletionChunkResponse = z.strictObject({
  ...head,
  object: z.literal("text_completion"),
  choices: z.array(z.strictObject({ ...completionChoice, finish_reason: finish.nullable() })),
  usage: UsageResponse.nullable().optional(),
});

export const ModelResponse = z.strictObject({
  id: z.string(),
  object: z.literal("model"),
  created: z.int(),
  owned_by: z.string(),
  max_model_len: z.int(),
});

export const ModelListResponse = z.strictObject({ object: z.literal("list"), data: z.array(ModelResponse) });

/** Anthropic's forms. */
export const MessageResponse = z.strictObject({
  id: z.string().startsWith("msg_"),
  type: z.literal("message"),
  role: z.literal("assistant"),
  model: z.string(),
  content: z.array(
    z.discriminatedUnion("type", [
      z.strictObject({ type: z.literal("thinking"), thinking: z.string(), signature: z.string() }),
      z.strictObject({ type: z.literal("text"), text: z.string(), citations: z.null() }),
      z.strictObject({
        type: z.literal("tool_use"),
        id: z.string().min(1),
        name: z.string().min(1),
        input: z.record(z.string(), z.unknown()),
        caller: z.strictObject({ type: z.literal("direct") }),
      }),
    ]),
  ),
  stop_reason: z.enum(["end_turn", "max_tokens", "stop_sequence", "tool_use"]),
  stop_sequence: z.string().nullable(),
  ...{ stop_details: z.null(), container: z.null(), diagnostics: z.null() },
  usage: z.strictObject({
    input_tokens: z.int(),
    cache_creation_input_tokens: z.int(),
    cache_read_input_tokens: z.int(),
    output_tokens: z.int(),
    ...{
      output_tokens_details: z.null(),
      server_tool_use: z.null(),
      cache_creation: z.null(),
      inference_geo: z.null(),
    },
    ...{ service_tier: z.null(), speed: z.null() },
  }),
});

export const TokenCountResponse = z.strictObject({ input_tokens: z.int() });

export const MessageErrorResponse = z.strictObject({
  type: z.literal("error"),
  error: z.strictObject({ type: z.string(), message: z.string() }),
  request_id: z.string(),
});

const whole = z.int().min(0);

export const UsageListResponse = z.strictObject({
  object: z.literal("list"),
  from: z.string(),
  to: z.string(),
  currency: z.string(),
  data: z.array(
    z.strictObject({
      object: z.literal("usage"),
      day: z.string(),
      tenant: z.string(),
      model: z.string(),
      requests: whole,
      failed_requests: whole,
      input_tokens: whole,
      input_cached_tokens: whole,
      output_tokens: whole,
      reasoning_tokens: whole,
      prefill_gpu_seconds: z.number().min(0),
      decode_gpu_seconds: z.number().min(0),
      cost: z.string().meta({ description: "Exact, with twelve decimal places." }),
      cost_micros: whole.meta({ description: "In millionths of the currency, rounded." }),
      currency: z.string(),
    }),
  ),
});
