import type { Random } from "./clock.ts";

export interface BackoffRule {
  readonly firstMs: number;
  readonly mostMs: number;
}

/**
 * Pause before try `attempt` (1 is the first repetition): doubling from `firstMs` to `mostMs`, of which a random half
 * is taken off, so that many who failed together do not return together.
 */
export function backoffMs(rule: BackoffRule, attempt: number, random: Random): number {
  const full = Math.min(rule.mostMs, rule.firstMs * 2 ** Math.min(attempt - 1, 52));
  return full * (0.5 + random.uniform() / 2);
}
