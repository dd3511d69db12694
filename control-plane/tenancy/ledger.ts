import type { Bus } from "#protocol/bus/bus.ts";
import type { JournalOf } from "#protocol/bus/journal.ts";
import { MargayError } from "#protocol/errors.ts";
import { LEDGER_JOURNAL, subjects, USAGE_JOURNAL } from "#protocol/subjects.ts";
import { LedgerEntry, UsageDay } from "#protocol/tenancy.ts";
import { atMost } from "#service/at-most.ts";
import type { Clock, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import { dayOf, daysOfMonth, monthOf } from "./calendar.ts";
import type { Picos } from "./money.ts";
import { EMPTY_DAY, withEntries } from "./usage-day.ts";

export interface LedgerParts {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly metrics: Metrics;
}

interface Day {
  sum: UsageDay;
  /** Number and reach of the sum that is kept; 0: none is. */
  keptSeq: number;
  keptThrough: number;
  keptMs: number;
}

const DAY_MS = 24 * 3600 * 1000;
/** Entries are looked at for so long, sums by day for more than a year. */
const ENTRY_AGE_MS = 40 * DAY_MS;
const SUM_AGE_MS = 800 * DAY_MS;
const LEDGER_BYTES = 128 * 1024 * 1024;
const SUM_BYTES = 16 * 1024 * 1024;
/** An entry that is written again within this time is the same one. */
const ONCE_MS = 3600 * 1000;
/** What others wrote is added up this often, and the sums kept that often. */
const SUM_MS = 2_000;
const KEEP_MS = 60_000;
/** Entries on their way to the bus at once, and those that wait for it: for an outage of hours. */
const MOST_SENT = 32;
const MOST_WAITING = 100_000;
const RETRY_MS = 500;

/**
 * Owns what requests used up, from their end until it is in the bus's journal, and the sums by day.
 *
 *   recorded -> waiting -> written -> added up
 *
 * E1 an entry is written until the journal has it, once: a repeated write within an hour changes nothing, and a request's
 *    day is that of its arrival, whoever writes its entry
 * E2 a day's sum is made of its entries in their order, and names the last of them: sums of different control planes agree,
 *    and one that is kept is gone on from, never begun again
 * E3 what was recorded here counts as spent at once, what others recorded within SUM_MS
 */
export class Ledger {
  readonly #parts: LedgerParts;
  readonly #entries: JournalOf<typeof LedgerEntry>;
  readonly #sums: JournalOf<typeof UsageDay>;
  readonly #days = new Map<string, Day>();
  /** Recorded here and in no sum yet. */
  readonly #fresh = new Map<string, LedgerEntry>();
  readonly #waiting: LedgerEntry[] = [];
  #sent = 0;
  #onEmpty: (() => void)[] = [];
  #timer: Timer | null = null;
  #loaded: Promise<void> | null = null;
  #turn: Promise<unknown> = Promise.resolve();
  #stopped = false;

  constructor(parts: LedgerParts) {
    this.#parts = parts;
    const kept = { maxAgeMs: ENTRY_AGE_MS, maxBytes: LEDGER_BYTES, addedOnceMs: ONCE_MS };
    this.#entries = parts.bus.journal({ name: LEDGER_JOURNAL, subjects: subjects.ledgerDays(), ...kept }, LedgerEntry);
    const sums = { maxAgeMs: SUM_AGE_MS, maxBytes: SUM_BYTES, lastOnly: true };
    this.#sums = parts.bus.journal({ name: USAGE_JOURNAL, subjects: subjects.usageDays(), ...sums }, UsageDay);
  }

  start(): void {
    this.#timer ??= this.#parts.clock.every(SUM_MS, () => void this.#addUp().catch(() => {}));
    void this.load().catch(() => {});
  }

  /** Writes what is recorded, then keeps the sums, each within `ms`. */
  async stop(ms: number): Promise<void> {
    this.#timer?.cancel();
    this.#timer = null;
    await atMost(this.#parts.clock, ms, this.written());
    await atMost(
      this.#parts.clock,
      ms,
      this.#alone(() => this.#addUpDays(true)),
    );
    this.#stopped = true;
    if (this.#waiting.length + this.#sent > 0) {
      this.#parts.logger.error({ entries: this.#waiting.length + this.#sent }, "ledger entries could not be written");
    }
  }

  /** Takes one request's entry; it is written as soon as the bus allows. */
  record(entry: LedgerEntry): void {
    if (this.#waiting.length >= MOST_WAITING) {
      this.#giveUp(entry, new Error("too many entries wait"));
      return;
    }
    this.#fresh.set(entry.requestId, entry);
    this.#waiting.push(entry);
    this.#write();
  }

  /** Resolves when everything recorded is written. */
  written(): Promise<void> {
    if (this.#waiting.length + this.#sent === 0) return Promise.resolve();
    return new Promise((resolve) => this.#onEmpty.push(resolve));
  }

  /** Adds up this month as it is. Rejects with `bus_unavailable`. */
  load(): Promise<void> {
    this.#loaded ??= this.#alone(async () => {
      for (const day of daysOfMonth(this.#parts.clock.now())) await this.#addUpDay(day, false);
    }).catch((error: unknown) => {
      this.#loaded = null;
      throw error;
    });
    return this.#loaded;
  }

  /** What a tenant's requests of this month cost so far. */
  async spent(tenant: string): Promise<Picos> {
    await this.load();
    const month = monthOf(this.#parts.clock.now());
    let sum = 0n;
    for (const [
      day,
      {
        sum: { rows },
      },
    ] of this.#days) {
      if (!day.startsWith(month)) continue;
      for (const row of rows) if (row.tenant === tenant) sum += BigInt(row.costPicos);
    }
    for (const entry of this.#fresh.values()) {
      if (entry.tenant === tenant && monthOf(entry.arrivedMs) === month) sum += BigInt(entry.costPicos);
    }
    return sum;
  }

  /** The sum of one day, with everything that is written by now. Rejects with `bus_unavailable`. */
  usage(day: string): Promise<UsageDay> {
    return this.#alone(async () => (await this.#addUpDay(day, false)).sum);
  }

  #write(): void {
    while (this.#sent < MOST_SENT) {
      const entry = this.#waiting.shift();
      if (entry === undefined) break;
      this.#sent++;
      void this.#writeOne(entry).then(() => {
        this.#sent--;
        this.#write();
      });
    }
    if (this.#waiting.length + this.#sent > 0) return;
    for (const resolve of this.#onEmpty.splice(0)) resolve();
  }

  async #writeOne(entry: LedgerEntry): Promise<void> {
    const subject = subjects.ledgerDay(dotted(dayOf(entry.arrivedMs)));
    while (!this.#stopped) {
      try {
        await this.#entries.add(subject, entry.requestId, entry);
        return;
      } catch (error) {
        if (!(error instanceof MargayError) || error.code !== "bus_unavailable") return this.#giveUp(entry, error);
        this.#parts.logger.debug({ requestId: entry.requestId, error }, "a ledger entry is not written yet");
        await this.#parts.clock.sleep(RETRY_MS);
      }
    }
  }

  /** An entry that cannot be written: its figures are left to the log. */
  #giveUp(entry: LedgerEntry, error: unknown): void {
    const { logger, metrics } = this.#parts;
    metrics.count("margay_ledger_lost_total", {});
    logger.error({ entry, error }, "a ledger entry is lost");
    this.#fresh.delete(entry.requestId);
  }

  #addUp(): Promise<void> {
    return this.#alone(() => this.#addUpDays(false));
  }

  /** Requests that began yesterday may end today. */
  async #addUpDays(keep: boolean): Promise<void> {
    const nowMs = this.#parts.clock.now();
    for (const day of [dayOf(nowMs - DAY_MS), dayOf(nowMs)]) await this.#addUpDay(day, keep);
    const oldest = dayOf(nowMs - ENTRY_AGE_MS);
    for (const day of this.#days.keys()) if (day < oldest) this.#days.delete(day);
  }

  async #addUpDay(name: string, keep: boolean): Promise<Day> {
    const { clock } = this.#parts;
    const day = this.#days.get(name) ?? (await this.#lastKept(name));
    const entries = await this.#entries.read(subjects.ledgerDay(dotted(name)), day.sum.through);
    day.sum = withEntries(day.sum, entries);
    this.#days.set(name, day);
    for (const { value } of entries) this.#fresh.delete(value.requestId);
    const due = keep || clock.monotonic() - day.keptMs >= KEEP_MS;
    if (!due || day.sum.through === day.keptThrough) return day;
    day.keptMs = clock.monotonic();
    const seq = await this.#sums.append(subjects.usageDay(dotted(name)), day.keptSeq, day.sum);
    if (seq === null) {
      // Another control plane kept one since: ours is kept behind it the next time, if it has more.
      const { keptSeq, keptThrough } = await this.#lastKept(name);
      Object.assign(day, { keptSeq, keptThrough });
    } else Object.assign(day, { keptSeq: seq, keptThrough: day.sum.through });
    return day;
  }

  async #lastKept(name: string): Promise<Day> {
    const last = await this.#sums.last(subjects.usageDay(dotted(name)));
    const sum = last?.value ?? EMPTY_DAY;
    return { sum, keptSeq: last?.seq ?? 0, keptThrough: sum.through, keptMs: this.#parts.clock.monotonic() };
  }

  /** One at a time adds up. */
  #alone<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(work);
    this.#turn = mine.catch(() => {});
    return mine;
  }
}

/** A day as tokens of a subject. */
function dotted(day: string): string {
  return day.replaceAll("-", ".");
}
