import { ERRORS, type ErrorCode } from "#protocol/errors.ts";
import { rate, shareAbove } from "./promql.ts";

/** Something that most requests should meet, and how many may miss it. */
export interface Goal {
  /** Of its recorded series and alerts. */
  readonly name: "Errors" | "FirstToken" | "Pace";
  readonly sentence: string;
  /** Share of requests that may miss it. */
  readonly budget: number;
  /** Share of requests that missed it within a window. */
  readonly missed: (window: string) => string;
  /** What an operator looks at and does. */
  readonly runbook: string;
}

/** Failures that the client could not have avoided; 429 is what limits are for. */
const OUR_FAULT = (Object.keys(ERRORS) as ErrorCode[]).filter((code) => ERRORS[code].status >= 500);

export const GOALS: readonly Goal[] = [
  {
    name: "Errors",
    sentence: "995 of 1000 requests end without a fault of the server",
    budget: 0.005,
    missed: (window) =>
      `${rate("margay_requests_total", ["model"], { outcome: OUR_FAULT }, window)} / ${rate("margay_requests_total", ["model"], {}, window)}`,
    runbook:
      "The panel `Requests that end, by how` names the codes. `capacity_timeout` and `no_worker`: workers lack, see MargayRequestsWait. `worker_lost` and `transfer_failed`: see the log of the ranks that `margay status` shows as lost. `internal`: the control plane's log has the error with the request's id; `margay explain ID` tells its way.",
  },
  {
    name: "FirstToken",
    sentence: "95 of 100 requests have their first token within 10 s",
    budget: 0.05,
    missed: (window) => shareAbove(10, "margay_time_to_first_token_seconds", ["model"], window),
    runbook:
      "Compare `Wait in the queue` with `Time to first token`. Where the wait is most of it, decode or prefill ranks lack: look at `Ranks, by state` and raise `MARGAY_PREFILL` or `MARGAY_DECODE`. Where it is not, prompts have become longer or the prefix cache is asked for what it does not have.",
  },
  {
    name: "Pace",
    sentence: "95 of 100 requests get further tokens at 10 a second and more",
    budget: 0.05,
    missed: (window) => shareAbove(0.1, "margay_time_per_output_token_seconds", ["model"], window),
    runbook:
      "Look at `Time of a step` of the decode ranks and at `Tokens in a step`. Full batches: more decode workers. Slow steps with small batches: the machine is shared or throttled; among several ranks the one with the least skew holds the others up.",
  },
];

/**
 * Windows of the burn rates, after the SRE workbook (Google, chapter 5): a long one that shows that the budget of a month
 * goes, a short one that shows that it still does.
 */
export const BURNS = [
  { name: "Fast", severity: "critical", long: "1h", short: "5m", factor: 14.4, after: "2m" },
  { name: "Slow", severity: "warning", long: "6h", short: "30m", factor: 6, after: "15m" },
] as const;

/** Name of the recorded share of requests that missed a goal. */
export function missedSeries({ name }: Goal, window: string): string {
  return `margay:missed_${name.toLowerCase()}:ratio_rate${window}`;
}
