import { TEXT } from "#protocol/metric-spec.ts";
import { TELLERS, tellersOf } from "#protocol/metric-tellers.ts";
import { METRICS, type MetricName } from "#protocol/metrics.ts";
import { ALERTS } from "./alerts.ts";
import { RECORDING_RULES, type RecordingRule } from "./recording-rules.ts";

const MOST_VALUES = 8;

/** The table of all metrics, in Markdown. */
export function metricsTable(): string {
  const rows = (Object.keys(METRICS) as MetricName[]).map((name) => {
    const { type, unit, help, labels } = METRICS[name];
    const tellers = tellersOf(name);
    const who = tellers.length === TELLERS.length ? "all" : tellers.join(", ");
    return `| \`${name}\` | ${type}, ${unit} | ${labelsText(labels)} | ${who} | ${help.replaceAll("|", "\\|")} |`;
  });
  return ["| metric | type, unit | labels | told by | |", "|---|---|---|---|---|", ...rows].join("\n");
}

function labelsText(labels: Readonly<Record<string, readonly string[] | typeof TEXT>>): string {
  return Object.entries(labels)
    .map(([label, values]) => {
      if (values === TEXT) return `\`${label}\``;
      return values.length > MOST_VALUES
        ? `\`${label}\` (${values.length} values)`
        : `\`${label}\` (${values.join(", ")})`;
    })
    .join("; ");
}

interface AlertingRule {
  readonly alert: string;
  readonly expr: string;
  readonly for: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
}

/** Rules as Prometheus reads them. */
export interface RuleGroups {
  readonly groups: readonly { readonly name: string; readonly rules: readonly (RecordingRule | AlertingRule)[] }[];
}

/** First what is recorded, then the alerts, which read it. */
export function ruleGroups(): RuleGroups {
  return {
    groups: [
      { name: "margay-recorded", rules: RECORDING_RULES },
      {
        name: "margay",
        rules: ALERTS.map(({ alert, expr, after, severity, summary }) => ({
          alert,
          expr,
          for: after,
          labels: { severity },
          annotations: { summary, runbook: `helm/RUNBOOKS.md#${alert.toLowerCase()}` },
        })),
      },
    ],
  };
}

/** What to do about each alert, in Markdown. */
export function runbooks(): string {
  const chapters = ALERTS.map(
    ({ alert, expr, after, severity, summary, runbook }) =>
      `## ${alert}\n\n${summary.replaceAll(/\{\{ \$labels\.(\w+) \}\}/g, "(the $1)")} *${severity}, after ${after}*\n\n${runbook}\n\n\`\`\`\n${expr}\n\`\`\`\n`,
  );
  return `# Runbooks\n\nOne chapter per alert of the chart. \`margay status\` shows workers and requests, \`margay trace\` what the workers do.\n\n${chapters.join("\n")}`;
}
