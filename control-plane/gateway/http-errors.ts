import type { z } from "zod";
import { asMargayError, ERRORS, type ErrorCode, MargayError } from "#protocol/errors.ts";

/** OpenAI's error form. */
export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string;
    /** Seconds after which coming back may help: a stream that has begun has no header for it. */
    readonly retry_after?: number;
  };
}

/** Failures whose own words say what is missing, and hold nothing else. */
const TOLD: ReadonlySet<ErrorCode> = new Set(["no_worker", "capacity_timeout"]);

/** What a client is told. The text of a server's own failure stays in the log, except why there are no workers. */
export function errorBody(error: MargayError): ErrorBody {
  const rule = ERRORS[error.code];
  const message = rule.status < 500 || TOLD.has(error.code) ? error.message : rule.text;
  const seconds = retryAfterSeconds(error);
  const later = error.retryAfterMs === null || seconds === null ? {} : { retry_after: seconds };
  return { error: { message, type: rule.type, param: error.param, code: error.code, ...later } };
}

/** Headers that belong to an error: `retry-after` (whole seconds) wherever coming back may help. */
export function errorHeaders(error: MargayError): Record<string, string> {
  if (error.status === 401) return { "www-authenticate": "Bearer" };
  // Not before the month is over: clients that try 429 again by themselves are told not to.
  if (error.code === "insufficient_quota") return { "x-should-retry": "false" };
  const seconds = retryAfterSeconds(error);
  return seconds === null ? {} : { "retry-after": String(seconds) };
}

function retryAfterSeconds(error: MargayError): number | null {
  const retriable = error.status === 429 || error.status === 503;
  const waitMs = error.retryAfterMs ?? (retriable ? 1000 : null);
  return waitMs === null ? null : Math.max(1, Math.ceil(waitMs / 1000));
}

/** `["messages", 0, "role"]` in OpenAI's spelling: `messages[0].role`; null for the body itself. */
export function paramOf(path: readonly PropertyKey[]): string | null {
  let param = "";
  for (const step of path) {
    if (typeof step === "number") param += `[${step}]`;
    else param += param === "" ? String(step) : `.${String(step)}`;
  }
  return param === "" ? null : param;
}

type Issue = z.core.$ZodIssue;

interface Pointed {
  readonly path: readonly PropertyKey[];
  readonly message: string;
}

/**
 * The issue that says most: within a union, that of the alternative that fits furthest (deepest fault, then fewest
 * faults); the union's own sentence where none fits further than another.
 */
function pointed(issue: Issue): Pointed {
  if (issue.code === "invalid_key") return { path: issue.path, message: issue.issues[0]?.message ?? issue.message };
  if (issue.code !== "invalid_union") return issue;
  const candidates = issue.errors.flatMap((faults) => {
    const [first] = faults;
    if (first === undefined) return [];
    const { path, message } = pointed(first);
    // Of the right type and yet refused is further than of another type.
    const typed = path.length === 0 && first.code !== "invalid_type" && first.code !== "invalid_union";
    return [{ path: [...issue.path, ...path], message, fit: path.length * 2 + (typed ? 1 : 0), faults: faults.length }];
  });
  candidates.sort((a, b) => b.fit - a.fit || a.faults - b.faults);
  const [best, next] = candidates;
  if (best === undefined || best.fit === 0) return issue;
  const tied = next !== undefined && next.fit === best.fit && next.faults === best.faults;
  return tied && next.message !== best.message ? issue : best;
}

/** The first fault of a request body, as one sentence whose subject is the field. */
export function requestFault(error: z.ZodError): MargayError {
  const [first] = error.issues;
  if (first === undefined) return new MargayError("invalid_request");
  const { path, message } = pointed(first);
  const param = paramOf(path);
  return new MargayError(
    "invalid_request",
    param === null ? "The body must be a JSON object." : `${param} ${message}.`,
    {
      param,
    },
  );
}

/** A refusal of one field: `refuse("n", "must be at most 16")`. */
export function refuse(param: string, rule: string): MargayError {
  return new MargayError("invalid_request", `${param} ${rule}.`, { param });
}

/** Whatever a handler or fastify itself threw, as a Margay error; its own 4xx are the client's. */
export function fromThrown(thrown: unknown, bodyLimitBytes: number): MargayError {
  if (thrown instanceof MargayError) return thrown;
  const { code, statusCode } = thrown as { readonly code?: unknown; readonly statusCode?: unknown };
  if (code === "FST_ERR_CTP_BODY_TOO_LARGE") {
    return new MargayError("payload_too_large", `The body must be at most ${bodyLimitBytes / 1_048_576} MiB.`);
  }
  if (code === "FST_ERR_CTP_INVALID_MEDIA_TYPE") {
    return new MargayError("invalid_request", "The content type must be application/json.");
  }
  if (typeof statusCode === "number" && statusCode >= 400 && statusCode < 500) {
    return new MargayError("invalid_request", "The HTTP request is malformed.", { cause: thrown });
  }
  return asMargayError(thrown);
}
