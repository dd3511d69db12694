import type { FastifyReply, FastifyRequest } from "fastify";
import { z } from "zod";
import type { Clock } from "#service/clock.ts";
import { dayOf, daysBetween, monthOf, timeOf } from "../tenancy/calendar.ts";
import { decimalOf, roundedMicros } from "../tenancy/money.ts";
import type { Tenancy, UsageOfDay } from "../tenancy/tenancy.ts";
import { callerOf } from "./auth.ts";
import { parseRequest } from "./generation-host.ts";
import { refuse } from "./http-errors.ts";
import { must } from "./must.ts";

/** Most days of one question. */
const MOST_DAYS = 92;

const dayRule = must("be a day of the calendar, for example 2026-11-24");
const day = z
  .string(dayRule)
  .refine((text) => timeOf(text) !== null, dayRule)
  .optional();

/** What `GET /v1/usage` may be asked. */
export const UsageQuery = z.strictObject({
  from: day,
  to: day,
  tenant: z.string(must("be the name of a tenant")).optional(),
  model: z.string(must("be the name of a model")).optional(),
  format: z.literal(["json", "csv"], must('be "json" or "csv"')).optional(),
});

/** Columns of a row: what it is about, counts, and money. */
const COLUMNS = [
  ...(["day", "tenant", "model", "requests", "failed_requests"] as const),
  ...(["input_tokens", "input_cached_tokens", "output_tokens", "reasoning_tokens"] as const),
  ...(["prefill_gpu_seconds", "decode_gpu_seconds", "cost", "cost_micros", "currency"] as const),
] as const;

/**
 * Answers `GET /v1/usage`: a row per day (UTC), tenant and model, of this month unless it is asked otherwise. A tenant
 * sees its own rows, a key with `admin` everybody's. `cost` is exact, `cost_micros` rounded to millionths.
 */
export async function usage(
  host: { readonly tenancy: Tenancy; readonly clock: Clock },
  request: FastifyRequest,
  reply: FastifyReply,
) {
  const query = parseRequest(UsageQuery, request.query);
  const { tenant, admin } = callerOf(request);
  const nowMs = host.clock.now();
  const from = query.from ?? `${monthOf(nowMs)}-01`;
  const to = query.to ?? dayOf(Math.max(nowMs, timeOf(from)!));
  const days = daysBetween(timeOf(from)!, timeOf(to)!);
  if (days.length === 0) throw refuse("to", "must not be before from");
  if (days.length > MOST_DAYS) throw refuse("to", `must be at most ${MOST_DAYS} days after from`);
  const wanted = admin ? (query.tenant ?? null) : tenant.name;
  const kept = await host.tenancy.usage(days);
  const rows = kept.days
    .flatMap((one) => one.rows.map((row) => tableRow(one.day, row, kept.currency)))
    .filter((row) => (wanted ?? row.tenant) === row.tenant && (query.model ?? row.model) === row.model);
  if (query.format !== "csv") return { object: "list", from, to, currency: kept.currency, data: rows };
  reply.type("text/csv; charset=utf-8");
  const lines = rows.map((row) => COLUMNS.map((column) => csvField(String(row[column]))).join(","));
  return `${[COLUMNS.join(","), ...lines].join("\r\n")}\r\n`;
}

function tableRow(date: string, row: UsageOfDay["rows"][number], currency: string) {
  const cost = BigInt(row.costPicos);
  return {
    object: "usage" as const,
    ...{ day: date, tenant: row.tenant, model: row.model },
    ...{ requests: row.requests, failed_requests: row.failedRequests },
    ...{ input_tokens: row.inputTokens, input_cached_tokens: row.cachedTokens },
    ...{ output_tokens: row.outputTokens, reasoning_tokens: row.reasoningTokens },
    prefill_gpu_seconds: row.prefillGpuMicros / 1e6,
    decode_gpu_seconds: row.decodeGpuMicros / 1e6,
    ...{ cost: decimalOf(cost), cost_micros: roundedMicros(cost), currency },
  };
}

/** Quoted where needed; a field that a spreadsheet would take for a formula is text. */
function csvField(text: string): string {
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
