/** What is declared of a metric. */
export interface MetricSpec {
  readonly type: "counter" | "gauge" | "histogram";
  readonly help: string;
  readonly unit:
    | "seconds"
    | "bytes"
    | "tokens"
    | "blocks"
    | "requests"
    | "workers"
    | "events"
    | "boolean"
    | "ratio"
    | "experts"
    | "currency";
  /** Label names with their closed set of values, or TEXT where the set is bounded but known only at run time. */
  readonly labels: Readonly<Record<string, readonly string[] | typeof TEXT>>;
  /** Upper bounds of a histogram, rising, in its unit. */
  readonly buckets?: readonly number[];
}

/** A label value known only at run time: few values all the same. */
export const TEXT = "text";

/** 1 ms to 10 min: anything a client or a phase of a request waits for. */
export const WAIT_SECONDS = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600,
] as const;
/** 0.1 ms to 2.5 s: one step, one token. */
export const STEP_SECONDS = [
  0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5,
] as const;
export const TOKENS = [
  1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072,
] as const;
