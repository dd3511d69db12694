import type { ErrorCode, MargayError } from "#protocol/errors.ts";

/**
 * Failed attempts of one request in a row, without a token between them, after which it fails itself. Being refused as
 * busy is waiting, not failing.
 */
export const MOST_FAILED_ATTEMPTS = 8;

/** What was waited for already, in vain. */
const WAITED_FOR: ReadonlySet<ErrorCode> = new Set(["no_worker", "capacity_timeout", "queue_full", "bus_unavailable"]);

/** What follows a failed attempt. */
export type NextMove =
  | { readonly kind: "again"; readonly pauseMs: number; readonly counts: boolean }
  | { readonly kind: "fail" };

/**
 * Decides by the verdict of the failure, never by its text: `never` ends the request; `elsewhere` and `same` are tried
 * again after a growing pause, within the budget. A busy rank costs none of the budget: how long a request may wait is
 * bounded by time.
 */
export function nextMove(error: MargayError, failedAttempts: number): NextMove {
  if (error.retry === "never" || WAITED_FOR.has(error.code)) return { kind: "fail" };
  if (error.code === "busy" || error.code === "draining") {
    return { kind: "again", pauseMs: 0, counts: false };
  }
  if (failedAttempts >= MOST_FAILED_ATTEMPTS) return { kind: "fail" };
  return { kind: "again", pauseMs: Math.min(1_000, 20 * 2 ** failedAttempts), counts: true };
}
