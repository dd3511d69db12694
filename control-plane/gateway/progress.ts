import type { IncomingHttpHeaders } from "node:http";
import type { RoleOutlook } from "#protocol/scaling.ts";
import type { FlowProgress } from "../flow/request-flow.ts";
import { refuse } from "./http-errors.ts";

const MAX_WAIT_HEADER = "x-margay-max-wait";
const MOST_WAIT_SECONDS = 86_400;

/** How long the client lets its request wait for workers, in milliseconds; null: as long as the server does. */
export function maxWaitOf(headers: IncomingHttpHeaders): number | null {
  const given = headers[MAX_WAIT_HEADER];
  if (given === undefined) return null;
  const seconds = typeof given === "string" && /^\d{1,5}(\.\d{1,3})?$/.test(given) ? Number(given) : Number.NaN;
  if (!(seconds <= MOST_WAIT_SECONDS)) {
    throw refuse(MAX_WAIT_HEADER, `must be a number of seconds from 0 to ${MOST_WAIT_SECONDS}`);
  }
  return seconds * 1000;
}

/**
 * What a silent stream is told of its request: `margay waking prefill 1/1 loading 62%, decode 1/1 ready; 3 s, about 2 s
 * more`. The numbers are workers with a process, of those that are wanted.
 */
export function progressComment(
  phase: FlowProgress["phase"],
  waitedMs: number,
  outlook: readonly RoleOutlook[],
): string {
  const waited = `${Math.round(waitedMs / 1000)} s`;
  const wanted = outlook.filter((role) => role.wanted > 0);
  const waits = phase === "waking" || phase === "waiting" || phase === "moved";
  if (!waits || wanted.length === 0) return `margay ${phase} ${waited}`;
  const roles = wanted.map(
    ({ role, wanted: all, started, phase: at, share }) =>
      `${role} ${started}/${all} ${at}${share === null ? "" : ` ${Math.round(100 * share)}%`}`,
  );
  const lefts = wanted.filter(({ phase: at }) => at !== "ready").map(({ leftMs }) => leftMs);
  const leftMs = lefts.some((one) => one === null) ? null : Math.max(0, ...lefts.map((one) => one ?? 0));
  const left = leftMs === null || leftMs < 1_000 ? "" : `, about ${Math.ceil(leftMs / 1000)} s more`;
  return `margay ${phase} ${roles.join(", ")}; ${waited}${left}`;
}
