import type { MargayError } from "#protocol/errors.ts";
import type { ResponseEnd } from "#protocol/response-entry.ts";
import type { Settled } from "../../flow/request-flow.ts";
import { errorBody } from "../http-errors.ts";

/** The end of an answer that came to one. */
export function endOf(promptTokens: number, settled: Settled, endedAt: number): ResponseEnd {
  const { finish, cachedTokens, completionTokens } = settled;
  return {
    ...{ status: finish === "length" ? "incomplete" : "completed", endedAt, error: null },
    usage: { promptTokens, cachedTokens, completionTokens },
  };
}

/** The end of one that did not. */
export function failedEnd(error: MargayError, endedAt: number): ResponseEnd {
  if (error.code === "cancelled") return { status: "cancelled", endedAt, error: null, usage: null };
  const code = error.status === 429 ? "rate_limit_exceeded" : "server_error";
  const { message } = errorBody(error).error;
  return { status: "failed", endedAt, error: { code, message }, usage: null };
}
