import type { LedgerEntry, UsageDay, UsageRow } from "#protocol/tenancy.ts";

/** A day with nothing in it. */
export const EMPTY_DAY: UsageDay = { kind: "usage-day", through: 0, rows: [] };

const COUNTS = [
  "inputTokens",
  "cachedTokens",
  "outputTokens",
  "reasoningTokens",
  "prefillGpuMicros",
  "decodeGpuMicros",
] as const;

/** A day with further entries of its ledger, in their order: pure, and the same whoever adds them up. */
export function withEntries(
  day: UsageDay,
  entries: readonly { readonly seq: number; readonly value: LedgerEntry }[],
): UsageDay {
  if (entries.length === 0) return day;
  const rows = new Map(day.rows.map((row) => [keyOf(row), { ...row }]));
  for (const { value } of entries) {
    const row = rows.get(keyOf(value)) ?? emptyRow(value.tenant, value.model);
    rows.set(keyOf(value), row);
    row.requests++;
    if (value.outcome !== "ok") row.failedRequests++;
    for (const count of COUNTS) row[count] += value[count];
    row.costPicos = (BigInt(row.costPicos) + BigInt(value.costPicos)).toString();
  }
  return { kind: "usage-day", through: entries.at(-1)!.seq, rows: [...rows.values()] };
}

function emptyRow(tenant: string, model: string): { -readonly [K in keyof UsageRow]: UsageRow[K] } {
  const counts = Object.fromEntries(COUNTS.map((count) => [count, 0])) as Record<(typeof COUNTS)[number], number>;
  return { tenant, model, requests: 0, failedRequests: 0, ...counts, costPicos: "0" };
}

function keyOf({ tenant, model }: { readonly tenant: string; readonly model: string }): string {
  return `${tenant}\n${model}`;
}
