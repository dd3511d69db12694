import {
  DiscardPolicy,
  headers,
  type Msg,
  type NatsConnection,
  type NatsError,
  RequestStrategy,
  RetentionPolicy,
  StorageType,
  type StreamConfig,
} from "nats";
import { asMargayError, MargayError } from "../errors.ts";
import type { JournalEntry, JournalLimits, LinkJournal } from "./journal.ts";

/** One question to the server. */
const ASK_MS = 5_000;
/** Entries and bytes of one answer. */
const BATCH = 512;
const BATCH_BYTES = 16 * 1024 * 1024;
/** Codes of the server's answers: the last entry is another one; a stream has this name and other limits. */
const WRONG_LAST = 10071;
const OTHER_LIMITS = 10058;
const FULL = 10077;
const NANOSECONDS = 1_000_000;

/**
 * A journal as a JetStream stream, made or brought to its limits with the first question.
 *
 * An append whose answer is lost is sent once more under the same id: the server then says where it was stored.
 */
export class NatsJournal implements LinkJournal {
  readonly #connection: () => NatsConnection;
  readonly #limits: JournalLimits;
  readonly #stamp: string;
  readonly #connected: () => boolean;
  #appends = 0;
  #opened: Promise<void> | null = null;

  /** `connection`: the one there is now. `stamp`: no other journal has it, of this connection or another. */
  constructor(connection: () => NatsConnection, limits: JournalLimits, stamp: string, connected: () => boolean) {
    this.#connected = connected;
    this.#connection = connection;
    this.#limits = limits;
    this.#stamp = stamp;
  }

  append(subject: string, after: number, data: Uint8Array): Promise<number | null> {
    const stamp = `${this.#stamp}-${this.#appends++}`;
    return this.#ask(async () => {
      try {
        return await this.#appendOnce(subject, after, data, stamp);
      } catch (error) {
        if (codeOf(error) !== null) throw error;
        return await this.#appendOnce(subject, after, data, stamp);
      }
    });
  }

  add(subject: string, id: string, data: Uint8Array): Promise<number> {
    return this.#ask(async () => {
      const stamped = headers();
      stamped.set("Nats-Msg-Id", id);
      return stored(await this.#connection().request(subject, data, { timeout: ASK_MS, headers: stamped }));
    });
  }

  read(subject: string, after: number, most?: number): Promise<readonly JournalEntry<Uint8Array>[]> {
    return this.#ask(async () => {
      if (most !== undefined) {
        const query = { seq: after + 1, next_by_subj: subject, batch: most, max_bytes: BATCH_BYTES };
        return (await this.#batch(query)).entries;
      }
      const entries: JournalEntry<Uint8Array>[] = [];
      for (;;) {
        const seq = (entries.at(-1)?.seq ?? after) + 1;
        const batch = await this.#batch({ seq, next_by_subj: subject, batch: BATCH, max_bytes: BATCH_BYTES });
        entries.push(...batch.entries);
        if (batch.left === 0 || batch.entries.length === 0) return entries;
      }
    });
  }

  last(subject: string): Promise<JournalEntry<Uint8Array> | null> {
    return this.#ask(async () => (await this.#batch({ last_by_subj: subject })).entries[0] ?? null);
  }

  purge(subject: string): Promise<void> {
    return this.#ask(async () => {
      await (await this.#manager()).streams.purge(this.#limits.name, { filter: subject });
    });
  }

  list(pattern: string): Promise<readonly string[]> {
    return this.#ask(async () => {
      const { streams } = await this.#manager();
      const { state } = await streams.info(this.#limits.name, { subjects_filter: pattern });
      return Object.keys(state.subjects ?? {});
    });
  }

  async #ask<T>(work: () => Promise<T>): Promise<T> {
    // The library would keep the question until it is connected again.
    if (!this.#connected()) throw new MargayError("bus_unavailable");
    try {
      this.#opened ??= this.#open();
      await this.#opened;
      return await work();
    } catch (error) {
      this.#opened = null;
      if (error instanceof MargayError) throw error;
      throw new MargayError("bus_unavailable", `NATS keeps no journal: ${asMargayError(error).message}`, {
        cause: error,
      });
    }
  }

  #manager() {
    return this.#connection().jetstreamManager({ timeout: ASK_MS, checkAPI: false });
  }

  async #open(): Promise<void> {
    const { name, subjects, maxAgeMs, maxBytes, refusesWhenFull, lastOnly, volatile, addedOnceMs } = this.#limits;
    const { streams } = await this.#manager();
    const config: Partial<StreamConfig> & { name: string } = {
      ...{ name, subjects: [subjects], max_age: maxAgeMs * NANOSECONDS, max_bytes: maxBytes },
      ...{
        storage: volatile === true ? StorageType.Memory : StorageType.File,
        retention: RetentionPolicy.Limits,
        discard: refusesWhenFull === true ? DiscardPolicy.New : DiscardPolicy.Old,
      },
      ...{ allow_direct: true, max_msgs_per_subject: lastOnly === true ? 1 : -1 },
      ...(addedOnceMs === undefined ? {} : { duplicate_window: addedOnceMs * NANOSECONDS }),
    };
    try {
      await streams.add(config);
    } catch (error) {
      if (codeOf(error) !== OTHER_LIMITS) throw error;
      await streams.update(name, config);
    }
  }

  async #appendOnce(subject: string, after: number, data: Uint8Array, stamp: string): Promise<number | null> {
    const stamped = headers();
    stamped.set("Nats-Msg-Id", stamp);
    stamped.set("Nats-Expected-Last-Subject-Sequence", String(after));
    const reply = await this.#connection().request(subject, data, { timeout: ASK_MS, headers: stamped });
    return refusedFor(reply) === WRONG_LAST ? null : stored(reply);
  }

  /** What a direct get answers: entries, and how many of the subject are left behind them. */
  async #batch(query: object): Promise<{ readonly entries: JournalEntry<Uint8Array>[]; readonly left: number }> {
    const single = !("batch" in query);
    const replies = await this.#connection().requestMany(
      `$JS.API.DIRECT.GET.${this.#limits.name}`,
      JSON.stringify(query),
      single
        ? { strategy: RequestStrategy.Count, maxMessages: 1, maxWait: ASK_MS }
        : { strategy: RequestStrategy.SentinelMsg, maxWait: ASK_MS },
    );
    const entries: JournalEntry<Uint8Array>[] = [];
    let ended = false;
    let left = 0;
    for await (const reply of replies) {
      const status = reply.headers?.code ?? 0;
      if (status === 404 || status === 204) {
        ended = true;
        left = Number(reply.headers?.get("Nats-Num-Pending") || 0);
        break;
      }
      if (status >= 400) throw new MargayError("bus_unavailable", `NATS reads no journal: ${status}`);
      entries.push({ seq: sequenceOf(reply), value: reply.data.slice() });
      if (single) ended = true;
    }
    if (!ended) throw new MargayError("bus_unavailable", "NATS did not answer in time.");
    return { entries, left };
  }
}

/** What the server says to an entry that it is to keep. */
interface Stored {
  readonly seq?: number;
  readonly error?: { readonly err_code: number; readonly description: string };
}

function refusedFor(reply: Msg): number | null {
  return reply.json<Stored>().error?.err_code ?? null;
}

/** The number of the entry; where it was there already, that it has. */
function stored(reply: Msg): number {
  const { seq, error } = reply.json<Stored>();
  if (seq !== undefined && error === undefined) return seq;
  if (error?.err_code === FULL && error.description.includes("maximum bytes")) {
    throw new MargayError("payload_too_large", "There is no room left where it is to be kept.");
  }
  throw new MargayError("bus_unavailable", `NATS keeps no entry: ${error?.description ?? "no answer"}`);
}

function sequenceOf(reply: Msg): number {
  return Number(reply.headers!.get("Nats-Sequence"));
}

/** The server's own code; null: it did not answer. */
function codeOf(error: unknown): number | null {
  if (error instanceof MargayError) return 0;
  return (error as NatsError).api_error?.err_code ?? null;
}
