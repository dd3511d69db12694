import { MargayError } from "#protocol/errors.ts";
import type { Refused } from "#protocol/worker.ts";

/**
 * What a rank said went wrong. A rank that calls an attempt over which this control plane did not end has lost it, which is
 * no reason to fail the request.
 */
export function refusalError(
  said: Pick<Refused, "code" | "detail"> & { readonly retryAfterMs?: number | null },
): MargayError {
  const code = said.code === "cancelled" ? "unknown_request" : said.code;
  return new MargayError(code, said.detail, { retryAfterMs: said.retryAfterMs ?? null });
}
