import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import { seriesOf, type Teller, tellersOf } from "#protocol/metric-tellers.ts";
import { type LabelsOf, METRICS, type MetricName, type MetricOf } from "#protocol/metrics.ts";
import { aliasesOf, renamed } from "./metric-aliases.ts";

/** One time series of a counter, ready to be added to: for hot paths. */
export interface CounterSeries {
  add(by?: number): void;
}

/** One time series of a histogram: for hot paths. */
export interface HistogramSeries {
  observe(value: number): void;
}

/**
 * The declared metrics of this process. A process that says who it is has every counter and histogram of its own from the
 * start, at zero, as far as their labels are known; any other series appears in the text once it was touched.
 */
export interface Metrics {
  count<N extends MetricOf<"counter">>(name: N, labels: LabelsOf<N>, by?: number): void;
  /** For a counter kept elsewhere (the engine): its value now. A smaller one than before counts as a fresh start. */
  countTotal<N extends MetricOf<"counter">>(name: N, labels: LabelsOf<N>, total: number): void;
  gauge<N extends MetricOf<"gauge">>(name: N, labels: LabelsOf<N>, value: number): void;
  observe<N extends MetricOf<"histogram">>(name: N, labels: LabelsOf<N>, value: number): void;
  /** The series itself, so that a hot path pays for its labels once. */
  counter<N extends MetricOf<"counter">>(name: N, labels: LabelsOf<N>): CounterSeries;
  histogram<N extends MetricOf<"histogram">>(name: N, labels: LabelsOf<N>): HistogramSeries;
  /** `collect` runs before every scrape, to set gauges and totals. One that throws fails the scrape. */
  onCollect(collect: () => void): void;
  /** Prometheus text format. */
  text(): Promise<string>;
  readonly contentType: string;
}

/** How often the delay of the event loop is sampled: each sample wakes an idle process. */
const LOOP_DELAY_MS = 100;

/** Whose metrics these are, and the models it serves. */
export interface Telling {
  readonly teller: Teller;
  readonly models: readonly string[];
}

/** A registry of its own; `processMetrics` adds memory, CPU, garbage collection and event loop. */
export function createMetrics(options: { readonly processMetrics: boolean; readonly telling?: Telling }): Metrics {
  const registry = new Registry();
  if (options.processMetrics)
    collectDefaultMetrics({ register: registry, eventLoopMonitoringPrecision: LOOP_DELAY_MS });
  const collectors: (() => void)[] = [];
  const totals = new Map<string, number>();
  const made = new Map<MetricName, Counter | Gauge | Histogram>();

  function metric<M extends Counter | Gauge | Histogram>(name: MetricName, make: (common: CommonOptions) => M): M {
    let found = made.get(name) as M | undefined;
    if (found === undefined) {
      const { help, labels } = METRICS[name];
      found = make({ name, help, labelNames: Object.keys(labels), registers: [registry] });
      made.set(name, found);
    }
    return found;
  }
  const counter = (name: MetricOf<"counter">) => metric(name, (common) => new Counter(common));
  const gauge = (name: MetricOf<"gauge">) => metric(name, (common) => new Gauge(common));
  const histogram = (name: MetricOf<"histogram">) =>
    metric(name, (common) => new Histogram({ ...common, buckets: [...METRICS[name].buckets] }));

  const { telling } = options;
  if (telling !== undefined) {
    for (const name of Object.keys(METRICS) as MetricName[]) {
      if (!tellersOf(name).includes(telling.teller)) continue;
      for (const labels of seriesOf(name, telling.teller, telling.models) ?? []) {
        const { type } = METRICS[name];
        if (type === "counter") counter(name as MetricOf<"counter">).inc(labels, 0);
        else if (type === "histogram") histogram(name as MetricOf<"histogram">).zero(labels);
      }
    }
  }
  const aliases = telling === undefined ? [] : aliasesOf(telling.teller);

  /** The same samples under the names that other engines' boards ask for. */
  async function aliasText(): Promise<string> {
    const texts = aliases
      .filter(({ of }) => made.has(of))
      .map(async (alias) => renamed(await registry.getSingleMetricAsString(alias.of), alias, telling!));
    return (await Promise.all(texts)).join("");
  }

  return {
    contentType: registry.contentType,
    count: (name, labels, by = 1) => counter(name).inc(record(labels), by),
    countTotal(name, labels, total) {
      const key = `${name}${JSON.stringify(Object.entries(labels).sort())}`;
      const before = totals.get(key) ?? 0;
      counter(name).inc(record(labels), total >= before ? total - before : total);
      totals.set(key, total);
    },
    gauge: (name, labels, value) => gauge(name).set(record(labels), value),
    observe: (name, labels, value) => histogram(name).observe(record(labels), value),
    counter(name, labels) {
      const series = counter(name).labels(record(labels));
      return { add: (by = 1) => series.inc(by) };
    },
    histogram: (name, labels) => histogram(name).labels(record(labels)),
    onCollect: (collect) => void collectors.push(collect),
    async text() {
      for (const collect of collectors) collect();
      return (await registry.metrics()) + (await aliasText());
    },
  };
}

/** prom-client's idea of labels; LabelsOf is the stricter one. */
function record(labels: object): Record<string, string> {
  return labels as Record<string, string>;
}

interface CommonOptions {
  readonly name: string;
  readonly help: string;
  readonly labelNames: string[];
  readonly registers: Registry[];
}
