import type { METRICS, MetricName, MetricOf } from "#protocol/metrics.ts";

/**
 * Queries, made of declared metrics and the labels that they have: a panel or a rule that names anything else does not
 * compile.
 */

/** Labels of a metric's own, and those that a scrape adds to every series. */
type LabelOf<N extends MetricName> = (keyof (typeof METRICS)[N]["labels"] & string) | TargetLabel;
type TargetLabel = "namespace" | "instance";
export const TARGET_LABELS: readonly TargetLabel[] = ["namespace", "instance"];

/** What a label must be: one of these values. */
export type Match<N extends MetricName> = { readonly [L in LabelOf<N>]?: string | readonly string[] };

/** Grafana's own choice of a window that holds enough scrapes. */
export const PANEL_WINDOW = "$__rate_interval";

/** `name{label="value"}` */
export function series<N extends MetricName>(name: N, match: Match<N> = {}, suffix = ""): string {
  const wanted = Object.entries(match as Readonly<Record<string, string | readonly string[]>>).map(([label, value]) =>
    typeof value === "string" ? `${label}="${value}"` : `${label}=~"${value.join("|")}"`,
  );
  return wanted.length === 0 ? `${name}${suffix}` : `${name}${suffix}{${wanted.join(",")}}`;
}

/** An aggregate of a gauge. */
export function over<N extends MetricOf<"gauge">>(
  how: "sum" | "max" | "min" | "avg",
  name: N,
  by: readonly LabelOf<N>[],
  match: Match<N> = {},
): string {
  return `${how}${byText(by)} (${series(name, match)})`;
}

/** How much of a counter comes per second. */
export function rate<N extends MetricOf<"counter">>(
  name: N,
  by: readonly LabelOf<N>[],
  match: Match<N> = {},
  window = PANEL_WINDOW,
): string {
  return `sum${byText(by)} (rate(${series(name, match)}[${window}]))`;
}

/** How much of a counter came within the window. */
export function increase<N extends MetricOf<"counter">>(
  name: N,
  by: readonly LabelOf<N>[],
  match: Match<N>,
  window: string,
): string {
  return `sum${byText(by)} (increase(${series(name, match)}[${window}]))`;
}

/** What a share of the observations does not exceed. */
export function quantile<N extends MetricOf<"histogram">>(
  share: number,
  name: N,
  by: readonly LabelOf<N>[],
  window = PANEL_WINDOW,
): string {
  return `histogram_quantile(${share}, sum${byText([...by, "le"])} (rate(${series(name, {}, "_bucket")}[${window}])))`;
}

/** Mean of the observations. */
export function mean<N extends MetricOf<"histogram">>(
  name: N,
  by: readonly LabelOf<N>[],
  window = PANEL_WINDOW,
): string {
  const part = (suffix: string): string => `sum${byText(by)} (rate(${series(name, {}, suffix)}[${window}]))`;
  return `${part("_sum")} / ${part("_count")}`;
}

/** Share of the observations above `bound`, which is one of the buckets. */
export function shareAbove<N extends MetricOf<"histogram">>(
  bound: (typeof METRICS)[N]["buckets"][number],
  name: N,
  by: readonly LabelOf<N>[],
  window: string,
): string {
  const within = series(name, {}, "_bucket");
  const all = series(name, {}, "_count");
  return `1 - sum${byText(by)} (rate(${within}{le="${bound}"}[${window}])) / sum${byText(by)} (rate(${all}[${window}]))`;
}

function byText(labels: readonly string[]): string {
  return labels.length === 0 ? "" : ` by (${labels.join(", ")})`;
}
