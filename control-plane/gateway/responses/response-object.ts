import type { ResponsesRequest } from "./request-schema.ts";

/** An item of an answer. Its fields fill up while it is made. */
export type OutputItem =
  | {
      readonly type: "reasoning";
      readonly id: string;
      readonly summary: readonly [];
      content: { readonly type: "reasoning_text"; text: string }[];
      status: ItemStatus;
    }
  | {
      readonly type: "message";
      readonly id: string;
      readonly role: "assistant";
      content: OutputText[];
      status: ItemStatus;
    }
  | {
      readonly type: "function_call";
      readonly id: string;
      readonly call_id: string;
      readonly name: string;
      arguments: string;
      status: ItemStatus;
    };
export type ItemStatus = "in_progress" | "completed" | "incomplete";

export interface OutputText {
  readonly type: "output_text";
  text: string;
  readonly annotations: readonly [];
  readonly logprobs: readonly [];
}

export interface ResponseUsage {
  readonly input_tokens: number;
  readonly input_tokens_details: { readonly cached_tokens: number; readonly cache_write_tokens: number };
  readonly output_tokens: number;
  readonly output_tokens_details: { readonly reasoning_tokens: number };
  readonly total_tokens: number;
}

/** What changes while a response is made. */
export interface ResponseProgress {
  readonly status: "queued" | "in_progress" | "completed" | "failed" | "incomplete" | "cancelled";
  readonly completedAt: number | null;
  readonly error: { readonly code: "server_error" | "rate_limit_exceeded"; readonly message: string } | null;
  readonly incomplete: "max_output_tokens" | null;
  readonly output: readonly OutputItem[];
  readonly usage: ResponseUsage | null;
}

/** What a response says of its request, from its first to its last event. */
export type ResponseHead = ReturnType<typeof responseHead>;

/** Fields that a request left out are told with the values they then have. */
export function responseHead(
  id: string,
  createdAt: number,
  body: ResponsesRequest,
  drawn: { readonly temperature: number; readonly topP: number },
) {
  return {
    id,
    object: "response",
    created_at: createdAt,
    background: body.background ?? false,
    instructions: body.instructions ?? null,
    max_output_tokens: body.max_output_tokens ?? null,
    max_tool_calls: null,
    metadata: body.metadata ?? {},
    model: body.model,
    parallel_tool_calls: body.parallel_tool_calls ?? true,
    previous_response_id: body.previous_response_id ?? null,
    prompt_cache_key: body.prompt_cache_key ?? null,
    reasoning: { effort: body.reasoning?.effort ?? null, summary: null },
    safety_identifier: body.safety_identifier ?? null,
    service_tier: body.service_tier ?? "default",
    store: body.store ?? true,
    temperature: drawn.temperature,
    text: { format: formatOf(body) },
    tool_choice: body.tool_choice ?? "auto",
    tools: (body.tools ?? []).map(({ type, name, description, parameters, strict }) => ({
      ...{ type, name, parameters: parameters ?? null, strict: strict ?? null },
      ...(typeof description === "string" ? { description } : {}),
    })),
    top_logprobs: 0,
    top_p: drawn.topP,
    truncation: "disabled",
    access_programs: null,
    ...(typeof body.user === "string" ? { user: body.user } : {}),
  } as const;
}

function formatOf({ text }: ResponsesRequest) {
  const format = text?.format ?? { type: "text" as const };
  if (format.type !== "json_schema") return format;
  const { description, ...rest } = format;
  return typeof description === "string" ? { ...rest, description } : rest;
}

/** The `response` of an answer or an event. */
export function responseObject(head: ResponseHead, progress: ResponseProgress) {
  const { id, object, created_at, ...rest } = head;
  const { status, completedAt, error, incomplete, output, usage } = progress;
  return {
    ...{ id, object, created_at, status },
    ...(completedAt === null ? {} : { completed_at: completedAt }),
    error,
    incomplete_details: incomplete === null ? null : { reason: incomplete },
    ...rest,
    output: [...output],
    ...(usage === null ? {} : { usage }),
  };
}
