import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import type { JournalEntry, JournalOf } from "#protocol/bus/journal.ts";
import type { GatewayId } from "#protocol/ids.ts";
import { ResponseEntry } from "#protocol/response-entry.ts";
import { RESPONSE_JOURNAL, subjects } from "#protocol/subjects.ts";

/** How long responses are kept, and how much of them. */
export interface ResponseLimits {
  readonly maxAgeMs: number;
  readonly maxBytes: number;
}

/**
 * Owns the words in which stored responses are kept: the log of each, and the mark of those that somebody has to make.
 *
 * L1 A response whose first entry is gone is gone as a whole.
 * L2 A mark is put before anybody hears of the response and taken off behind its end; one too many does no harm.
 */
export class ResponseLog {
  readonly gatewayId: GatewayId;
  readonly #bus: Bus;
  readonly #journal: JournalOf<typeof ResponseEntry>;

  constructor(bus: Bus, gatewayId: GatewayId, limits: ResponseLimits) {
    this.#bus = bus;
    this.gatewayId = gatewayId;
    this.#journal = bus.journal({ name: RESPONSE_JOURNAL, subjects: subjects.responseAll(), ...limits }, ResponseEntry);
  }

  /** Appends behind entry `after`, 0: as the first. null: somebody else did, or the response was deleted. */
  append(id: string, after: number, entry: ResponseEntry): Promise<number | null> {
    return this.#journal.append(subjects.responseLog(id), after, entry);
  }

  /** The entries behind `after`. Empty as well where the response is not, or no longer, kept. */
  async read(id: string, after: number): Promise<readonly JournalEntry<ResponseEntry>[]> {
    const entries = await this.#journal.read(subjects.responseLog(id), after);
    return after === 0 && entries[0]?.value.number !== 0 ? [] : entries;
  }

  last(id: string): Promise<JournalEntry<ResponseEntry> | null> {
    return this.#journal.last(subjects.responseLog(id));
  }

  async remove(id: string): Promise<void> {
    await this.#journal.purge(subjects.responseLog(id));
    await this.unmark(id);
  }

  async mark(id: string): Promise<void> {
    await this.#journal.append(subjects.responseMark(id), 0, {
      ...{ number: 0, writer: this.gatewayId, record: null, end: null },
      ...{ tokens: new Int32Array(0), sizes: new Int32Array(0) },
    });
  }

  unmark(id: string): Promise<void> {
    return this.#journal.purge(subjects.responseMark(id));
  }

  /** Ids of the responses that are marked. */
  async marked(): Promise<readonly string[]> {
    const found = await this.#journal.list(subjects.responseMarks());
    return found.map((subject) => subject.split(".")[2]!);
  }

  /** Hears of entries as they are offered to the log, which may come before the log has them or refuses them. */
  listen(id: string, onEntry: (entry: ResponseEntry) => void): Subscription {
    return this.#bus.subscribe(subjects.responseLog(id), ResponseEntry, onEntry);
  }
}
