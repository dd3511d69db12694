import { METERED, type Metered, type TenantAccount } from "#protocol/tenancy.ts";
import type { Limits } from "./key-file.ts";

export type Amounts = Readonly<Record<Metered, number>>;

const MINUTE_MS = 60_000;

/** What fits into each bucket, a minute's worth; null: there is no such limit. */
export function capacities(limits: Limits): Readonly<Record<Metered, number | null>> {
  return {
    requests: limits.requestsPerMinute,
    input: limits.inputTokensPerMinute,
    output: limits.outputTokensPerMinute,
    total: limits.tokensPerMinute,
  };
}

/** The buckets at `nowMs`: what runs in, and nothing above the rim. A clock that is behind changes nothing. */
export function refilled({ levels, atMs }: Pick<TenantAccount, "levels" | "atMs">, limits: Limits, nowMs: number) {
  const capacity = capacities(limits);
  const passedMs = Math.max(0, nowMs - atMs);
  const level = (metered: Metered): number => {
    const most = capacity[metered];
    return most === null ? 0 : Math.min(most, levels[metered] + (most * passedMs) / MINUTE_MS);
  };
  return {
    atMs: Math.max(atMs, nowMs),
    levels: { requests: level("requests"), input: level("input"), output: level("output"), total: level("total") },
  };
}

/**
 * What a bucket must hold for a need: the need, or all that fits where the need is more. So a request above a minute's
 * worth waits for a full bucket, and the minutes after it pay. An empty bucket gives nothing, not even for a need of 0.
 */
export function threshold(need: number, capacity: number): number {
  return Math.max(1, Math.min(need, capacity));
}

/** Milliseconds until every bucket holds what is needed; 0: now. */
export function untilEnough(levels: Amounts, need: Amounts, limits: Limits): number {
  const capacity = capacities(limits);
  return METERED.reduce((most, metered) => {
    const full = capacity[metered];
    if (full === null) return most;
    const missing = threshold(need[metered], full) - levels[metered];
    return missing <= 0 ? most : Math.max(most, Math.ceil((missing * MINUTE_MS) / full));
  }, 0);
}

/** Milliseconds until a bucket is full again. */
export function untilFull(level: number, capacity: number): number {
  return Math.max(0, ((capacity - level) * MINUTE_MS) / capacity);
}
