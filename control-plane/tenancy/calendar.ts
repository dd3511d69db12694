import { isoTime } from "#service/clock.ts";

const DAY_MS = 24 * 3600 * 1000;

/** The day of a time, in UTC: `2026-11-24`. */
export function dayOf(epochMs: number): string {
  return isoTime(epochMs).slice(0, 10);
}

/** The month of a time, in UTC: `2026-11`. */
export function monthOf(epochMs: number): string {
  return isoTime(epochMs).slice(0, 7);
}

/** Midnight of a day in UTC, epoch milliseconds; null: there is no such day. */
export function timeOf(day: string): number | null {
  const ms = /^\d{4}-\d{2}-\d{2}$/.test(day) ? Date.parse(`${day}T00:00:00Z`) : Number.NaN;
  // A day such as the 31st of June is no time, or that of another day.
  return Number.isNaN(ms) || dayOf(ms) !== day ? null : ms;
}

/** All days from one to another, both included. */
export function daysBetween(fromMs: number, toMs: number): readonly string[] {
  const days: string[] = [];
  for (let ms = fromMs; ms <= toMs; ms += DAY_MS) days.push(dayOf(ms));
  return days;
}

/** Days of the month up to the day of `nowMs`. */
export function daysOfMonth(nowMs: number): readonly string[] {
  return daysBetween(timeOf(`${monthOf(nowMs)}-01`)!, nowMs);
}

/** The first moment of the next month, epoch milliseconds. */
export function nextMonth(nowMs: number): number {
  const [year = 0, month = 0] = monthOf(nowMs).split("-").map(Number);
  return Date.UTC(year, month, 1);
}
