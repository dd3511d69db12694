import { createHash } from "node:crypto";
import { MargayError } from "#protocol/errors.ts";
import type { RequestId } from "#protocol/ids.ts";
import { MAX_PRIORITY } from "#protocol/request.ts";
import type { Clock } from "#service/clock.ts";
import { IDLE_URGENCY } from "../../flow/fair-queue.ts";
import type { Caller } from "../../tenancy/caller.ts";
import { errorBody, refuse } from "../http-errors.ts";
import type { OwnRequests } from "../own-requests.ts";
import type { BatchLine, Outcome } from "./batch-line.ts";

/** What this server answers itself. */
export interface OwnAnswer {
  readonly statusCode: number;
  readonly headers: Readonly<Record<string, unknown>>;
  readonly payload: string;
}

/** Sends a request to one of this server's own routes. */
export type AskSelf = (request: {
  readonly method: "POST";
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly payload: string;
}) => Promise<OwnAnswer>;

export interface LineHost {
  readonly clock: Clock;
  readonly own: OwnRequests;
  readonly askSelf: AskSelf;
}

/** One line, and by whom and how it is asked. */
export interface LineAsk {
  readonly batch: string;
  readonly index: number;
  readonly line: BatchLine;
  /** Entry by which the batch was claimed: ranks may know a line by the id that it had under an earlier one. */
  readonly claim: number;
  /** Who asks, as its key holds now. Throws where it holds no more. */
  readonly caller: () => Caller;
  readonly signal: AbortSignal;
}

/** Tries of what failed for a reason that time alone does not mend. */
const MOST_FAILURES = 3;
/** Pauses before another try: what the answer says, within these. */
const LEAST_PAUSE_MS = 500;
const MOST_PAUSE_MS = 60_000;

/**
 * Asks for one line until it has an answer that stays: a full queue, a limit of the tenant and missing workers are waited
 * for, as long as the batch has time. Rejects with the signal's reason, and with `shutting_down` where this server ends.
 */
export async function serveLine(host: LineHost, ask: LineAsk): Promise<Outcome> {
  const { line, batch, index } = ask;
  for (const field of ["stream", "background"]) {
    if (line.body[field] !== true) continue;
    const requestId = `req_${digestOf(batch, index)}`;
    const body = errorBody(refuse(field, "must not be true in a batch"));
    return { kind: "answered", status: 400, requestId, body };
  }
  let failures = 0;
  for (let tries = 0; ; tries++) {
    ask.signal.throwIfAborted();
    const answer = await askOnce(host, ask, tries);
    const body = JSON.parse(answer.payload) as { readonly error?: { readonly code?: string } };
    const { statusCode: status } = answer;
    const code = body.error?.code;
    if (code === "shutting_down" || code === "invalid_api_key") throw new MargayError(code);
    const passing = status === 503 || (status === 429 && code !== "insufficient_quota");
    const failed = status === 500 || status === 504;
    if (!passing && !(failed && ++failures < MOST_FAILURES)) {
      return { kind: "answered", status, requestId: String(answer.headers["x-request-id"]), body };
    }
    await host.clock.sleep(pauseMs(answer), ask.signal);
  }
}

/** The same each time for what a line is charged under: whoever asks again after a loss charges it once. */
function digestOf(...parts: readonly (string | number)[]): string {
  return createHash("sha256").update(parts.join(":")).digest("hex").slice(0, 24);
}

async function askOnce(host: LineHost, ask: LineAsk, tries: number): Promise<OwnAnswer> {
  const { line, batch, index, claim, signal } = ask;
  const own = host.own.announce({
    requestId: `req_${digestOf(batch, index, tries, claim)}` as RequestId,
    chargedAs: `req_${digestOf(batch, index, tries)}` as RequestId,
    ...{ caller: ask.caller(), urgency: IDLE_URGENCY, signal },
  });
  try {
    const headers = { "content-type": "application/json", ...own.headers };
    const payload = JSON.stringify({ ...line.body, priority: MAX_PRIORITY });
    const answer = await host.askSelf({ method: "POST", url: line.url, headers, payload });
    signal.throwIfAborted();
    return answer;
  } finally {
    own.over();
  }
}

function pauseMs({ headers }: OwnAnswer): number {
  const seconds = Number(headers["retry-after"] ?? 1);
  return Math.min(MOST_PAUSE_MS, Math.max(LEAST_PAUSE_MS, seconds * 1000));
}
