import { BatchEntry, type BatchStep } from "#protocol/batch-entry.ts";
import type { Bus } from "#protocol/bus/bus.ts";
import type { JournalEntry, JournalOf } from "#protocol/bus/journal.ts";
import type { GatewayId } from "#protocol/ids.ts";
import { BATCH_JOURNAL, subjects } from "#protocol/subjects.ts";
import type { Clock } from "#service/clock.ts";
import { accountToken } from "../../tenancy/account.ts";

/** Steps of a batch are few and small: room for some ten thousand batches. */
const MAX_BYTES = 32 * 1024 * 1024;

/** Where a batch is kept. `tenant` is the subject's word for it. */
export interface BatchPlace {
  readonly tenant: string;
  readonly id: string;
}

/**
 * Owns the words in which batches are kept: the log of each, and the mark of those that somebody has to work on.
 *
 * L1 A mark is put before anybody hears of the batch and taken off behind its end; one too many does no harm.
 */
export class BatchLog {
  readonly gatewayId: GatewayId;
  readonly #clock: Clock;
  readonly #journal: JournalOf<typeof BatchEntry>;

  constructor(bus: Bus, gatewayId: GatewayId, clock: Clock, maxAgeMs: number) {
    this.gatewayId = gatewayId;
    this.#clock = clock;
    const limits = { name: BATCH_JOURNAL, subjects: subjects.batchesAll(), maxAgeMs, maxBytes: MAX_BYTES };
    this.#journal = bus.journal(limits, BatchEntry);
  }

  /** Appends behind entry `after`, 0: as the first. null: somebody else did. */
  async append(place: BatchPlace, after: number, step: BatchStep): Promise<JournalEntry<BatchEntry> | null> {
    const value = this.#entry(step);
    const seq = await this.#journal.append(subjects.batchLog(place.tenant, place.id), after, value);
    return seq === null ? null : { seq, value };
  }

  /** The entries behind `after`. */
  read(place: BatchPlace, after: number): Promise<readonly JournalEntry<BatchEntry>[]> {
    return this.#journal.read(subjects.batchLog(place.tenant, place.id), after);
  }

  /** Ids of a tenant's batches, the oldest first. */
  async ids(tenant: string): Promise<readonly string[]> {
    const found = await this.#journal.list(subjects.batchLogs(tenant));
    return found.map((subject) => subject.split(".")[3]!).sort();
  }

  async mark(place: BatchPlace): Promise<void> {
    await this.#journal.append(subjects.batchMark(place.tenant, place.id), 0, this.#entry({ kind: "left" }));
  }

  unmark(place: BatchPlace): Promise<void> {
    return this.#journal.purge(subjects.batchMark(place.tenant, place.id));
  }

  async marked(): Promise<readonly BatchPlace[]> {
    const found = await this.#journal.list(subjects.batchMarks());
    return found.map((subject) => ({ tenant: subject.split(".")[2]!, id: subject.split(".")[3]! }));
  }

  #entry(step: BatchStep): BatchEntry {
    return { at: Math.floor(this.#clock.now() / 1000), writer: this.gatewayId, step };
  }
}

/** The place of a tenant's batch. */
export function placeOf(tenant: string, id: string): BatchPlace {
  return { tenant: accountToken(tenant), id };
}
