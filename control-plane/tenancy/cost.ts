import type { LedgerEntry } from "#protocol/tenancy.ts";
import type { ModelPrice } from "./key-file.ts";
import { PICOS_PER_MICRO, type Picos } from "./money.ts";

const MICROS_PER_HOUR = 3_600_000_000n;

/** Ends of which the provider is the cause: what they used up is noted, and costs nothing. */
const OURS = new Set<LedgerEntry["outcome"]>([
  ...(["internal", "numeric", "worker_lost", "transfer_failed", "timeout", "deadline_exceeded"] as const),
  ...(["shutting_down", "bus_unavailable", "no_worker", "capacity_timeout", "queue_full", "busy", "draining"] as const),
]);

/**
 * What a request costs: prompt tokens that were computed, cached ones, generated ones, and time of GPUs, each at its
 * price. Exact but for GPU time, whose price is by the hour: it is cut to whole pico-units.
 */
export function costOf(entry: Omit<LedgerEntry, "kind" | "costPicos">, price: ModelPrice | null): Picos {
  if (price === null || OURS.has(entry.outcome)) return 0n;
  const tokens = (count: number, perMillion: number): Picos => BigInt(count) * BigInt(perMillion);
  const gpu = (micros: number, perHour: number): Picos =>
    (BigInt(micros) * BigInt(perHour) * PICOS_PER_MICRO) / MICROS_PER_HOUR;
  return (
    tokens(entry.inputTokens - entry.cachedTokens, price.input) +
    tokens(entry.cachedTokens, price.cachedInput) +
    tokens(entry.outputTokens, price.output) +
    gpu(entry.prefillGpuMicros, price.prefillGpuHour) +
    gpu(entry.decodeGpuMicros, price.decodeGpuHour)
  );
}
