import { BURNS, GOALS, missedSeries } from "./goals.ts";
import { quantile, rate } from "./promql.ts";

export interface RecordingRule {
  readonly record: string;
  readonly expr: string;
}

const WINDOWS = BURNS.flatMap(({ short, long }) => [short, long]);

/** What boards and burn rates ask for again and again, computed once. */
export const RECORDING_RULES: readonly RecordingRule[] = [
  ...GOALS.flatMap((goal) =>
    WINDOWS.map((window) => ({ record: missedSeries(goal, window), expr: goal.missed(window) })),
  ),
  { record: "margay:requests:rate5m", expr: rate("margay_requests_total", ["model"], {}, "5m") },
  { record: "margay:prompt_tokens:rate5m", expr: rate("margay_prompt_tokens_total", ["model"], {}, "5m") },
  { record: "margay:generated_tokens:rate5m", expr: rate("margay_generated_tokens_total", ["model"], {}, "5m") },
  {
    record: "margay:time_to_first_token_seconds:p95_5m",
    expr: quantile(0.95, "margay_time_to_first_token_seconds", ["model"], "5m"),
  },
  {
    record: "margay:time_per_output_token_seconds:p95_5m",
    expr: quantile(0.95, "margay_time_per_output_token_seconds", ["model"], "5m"),
  },
];
