import { z } from "zod";

/** Whether the same work may be tried again: not at all, at the same place, or only at another rank. */
export type RetryVerdict = "never" | "same" | "elsewhere";

interface ErrorRule {
  readonly status: number;
  readonly retry: RetryVerdict;
  /** OpenAI's `error.type`. */
  readonly type: "invalid_request_error" | "rate_limit_error" | "insufficient_quota" | "server_error" | "timeout_error";
  /** Safe to show to anybody: never holds prompt text. */
  readonly text: string;
}

/** Every failure the parts of the system tell each other, with its HTTP form and what to do about it. */
export const ERRORS = {
  invalid_request: { status: 400, retry: "never", type: "invalid_request_error", text: "The request is invalid." },
  context_length_exceeded: {
    status: 400,
    retry: "never",
    type: "invalid_request_error",
    text: "The prompt and the requested output exceed the model's context.",
  },
  invalid_api_key: {
    status: 401,
    retry: "never",
    type: "invalid_request_error",
    text: "The API key is missing or does not hold.",
  },
  not_allowed: {
    status: 403,
    retry: "never",
    type: "invalid_request_error",
    text: "The API key does not allow this.",
  },
  model_not_found: { status: 404, retry: "never", type: "invalid_request_error", text: "The model does not exist." },
  not_found: { status: 404, retry: "never", type: "invalid_request_error", text: "There is nothing at this address." },
  method_not_allowed: {
    status: 405,
    retry: "never",
    type: "invalid_request_error",
    text: "This method is not allowed here.",
  },
  payload_too_large: {
    status: 413,
    retry: "never",
    type: "invalid_request_error",
    text: "The request body is too large.",
  },
  /** A tenant's own limit. */
  rate_limit_exceeded: {
    status: 429,
    retry: "never",
    type: "rate_limit_error",
    text: "The rate limit is reached. Try again later.",
  },
  insufficient_quota: {
    status: 429,
    retry: "never",
    type: "insufficient_quota",
    text: "The budget of this month is used up.",
  },
  queue_full: {
    status: 429,
    retry: "same",
    type: "rate_limit_error",
    text: "Too many requests are waiting. Try again later.",
  },
  /** A rank has no free slot or pages now; another rank, or the same one later, may. */
  busy: { status: 503, retry: "elsewhere", type: "server_error", text: "The worker is busy." },
  draining: { status: 503, retry: "elsewhere", type: "server_error", text: "The worker is shutting down." },
  /** Workers cannot be had, and why is known. */
  no_worker: { status: 503, retry: "same", type: "server_error", text: "No worker is available." },
  /** A request waited for workers with room for as long as it may. */
  capacity_timeout: {
    status: 503,
    retry: "same",
    type: "server_error",
    text: "No worker with room became available in time.",
  },
  worker_lost: { status: 503, retry: "elsewhere", type: "server_error", text: "A worker was lost." },
  transfer_failed: { status: 503, retry: "elsewhere", type: "server_error", text: "The KV transfer failed." },
  reservation_expired: { status: 503, retry: "elsewhere", type: "server_error", text: "The KV reservation expired." },
  stale_epoch: { status: 503, retry: "elsewhere", type: "server_error", text: "The worker was restarted." },
  incompatible: { status: 503, retry: "elsewhere", type: "server_error", text: "The workers do not match." },
  unknown_request: {
    status: 503,
    retry: "elsewhere",
    type: "server_error",
    text: "The worker does not know this request.",
  },
  cancelled: { status: 499, retry: "never", type: "invalid_request_error", text: "The request was cancelled." },
  timeout: { status: 504, retry: "elsewhere", type: "timeout_error", text: "A phase of the request took too long." },
  deadline_exceeded: {
    status: 504,
    retry: "never",
    type: "timeout_error",
    text: "The request did not finish in time.",
  },
  /** The model produced something that is not a number for this request. */
  numeric: { status: 500, retry: "never", type: "server_error", text: "The model's output was not a number." },
  bus_unavailable: { status: 503, retry: "same", type: "server_error", text: "The message bus is unavailable." },
  shutting_down: { status: 503, retry: "never", type: "server_error", text: "The server is shutting down." },
  internal: { status: 500, retry: "elsewhere", type: "server_error", text: "An internal error occurred." },
} as const satisfies Record<string, ErrorRule>;

export type ErrorCode = keyof typeof ERRORS;
export const ErrorCode = z.enum(Object.keys(ERRORS) as [ErrorCode, ...ErrorCode[]]);

/**
 * A failure with a code. `message` is for logs and, for status < 500 and a lack of workers, for the client; it never holds
 * prompt text.
 * `param` names the request field at fault, `retryAfterMs` when to come back.
 */
export class MargayError extends Error {
  override readonly name = "MargayError";
  readonly code: ErrorCode;
  readonly param: string | null;
  readonly retryAfterMs: number | null;

  constructor(
    code: ErrorCode,
    message?: string,
    options: { readonly param?: string | null; readonly retryAfterMs?: number | null; readonly cause?: unknown } = {},
  ) {
    super(message ?? ERRORS[code].text, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.param = options.param ?? null;
    this.retryAfterMs = options.retryAfterMs ?? null;
  }

  get status(): number {
    return ERRORS[this.code].status;
  }

  get retry(): RetryVerdict {
    return ERRORS[this.code].retry;
  }
}

/** Wraps whatever was thrown; a `MargayError` passes unchanged. */
export function asMargayError(thrown: unknown, code: ErrorCode = "internal"): MargayError {
  if (thrown instanceof MargayError) return thrown;
  return new MargayError(code, thrown instanceof Error ? thrown.message : String(thrown), { cause: thrown });
}

/** The last branch of a `switch` over a closed union. */
export function unreachable(value: never): never {
  throw new MargayError("internal", `unreachable: ${JSON.stringify(value)}`);
}
