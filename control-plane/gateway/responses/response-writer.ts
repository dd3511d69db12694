import { asMargayError, MargayError } from "#protocol/errors.ts";
import type { ResponseEnd, ResponseRecord } from "#protocol/response-entry.ts";
import type { Clock } from "#service/clock.ts";
import type { ResponseLog } from "./response-log.ts";

/** Longest time an entry is tried to be written while the bus is away, and the pause between two attempts. */
const PATIENCE_MS = 30_000;
/** The same for the first entry, for which a client waits. */
const BEGIN_PATIENCE_MS = 3_000;
const PAUSE_MS = 250;

interface Piece {
  readonly tokens: Int32Array;
  readonly events: string;
}

/**
 * Owns the writing of one response's log: one entry at a time is on its way, and what comes meanwhile is in the next.
 *
 *   open -> (writing -> written)* -> ended | lost
 *
 * W1 Events are handed on once the entry that they come from is kept, in order: nobody hears of what could be forgotten.
 * W2 Where somebody else has written, the response is lost to this writer, which writes no more.
 */
export class ResponseWriter {
  readonly #log: ResponseLog;
  readonly #id: string;
  readonly #clock: Clock;
  readonly #onWritten: (events: string) => void;
  readonly #onLost: (error: MargayError) => void;
  #record: ResponseRecord | null;
  #after: number;
  #number: number;
  #pieces: Piece[] = [];
  #end: { readonly end: ResponseEnd; readonly events: string } | null = null;
  #writing: Promise<void> | null = null;
  #state: "open" | "ended" | "lost" = "open";
  #lostBy: MargayError | null = null;

  constructor(options: {
    readonly log: ResponseLog;
    readonly id: string;
    readonly clock: Clock;
    /** The first entry's; null: the response was begun, and `after` and `number` are those of its last entry. */
    readonly record: ResponseRecord | null;
    readonly after?: number;
    readonly number?: number;
    readonly onWritten: (events: string) => void;
    readonly onLost: (error: MargayError) => void;
  }) {
    this.#log = options.log;
    this.#id = options.id;
    this.#clock = options.clock;
    this.#record = options.record;
    this.#after = options.after ?? 0;
    this.#number = (options.number ?? -1) + 1;
    this.#onWritten = options.onWritten;
    this.#onLost = options.onLost;
  }

  get state(): "open" | "ended" | "lost" {
    return this.#state;
  }

  /** Writes the record, and nothing else yet. Rejects where that can't be done. */
  async begin(): Promise<void> {
    await this.#written();
    if (this.#lostBy !== null) throw this.#lostBy;
  }

  /** `events` are handed on when the tokens are kept. */
  push(tokens: Int32Array, events: string): void {
    this.#pieces.push({ tokens, events });
    void this.#written();
  }

  /** Resolves when the end is kept, or the response lost. */
  async end(end: ResponseEnd, events: string): Promise<void> {
    this.#end ??= { end, events };
    await this.#written();
  }

  #written(): Promise<void> {
    this.#writing ??= this.#write();
    return this.#writing;
  }

  async #write(): Promise<void> {
    // What is pushed in one turn goes into one entry.
    await null;
    while (this.#state === "open" && (this.#record !== null || this.#pieces.length > 0 || this.#end !== null)) {
      const [record, pieces, end] = [this.#record, this.#pieces, this.#end];
      this.#pieces = [];
      const seq = await this.#append(record, pieces, end?.end ?? null);
      if (seq === null) break;
      if (end !== null) {
        this.#state = "ended";
        if (record === null) this.#log.unmark(this.#id).catch(() => {});
      }
      this.#record = null;
      this.#after = seq;
      this.#number++;
      const events = pieces.map((piece) => piece.events).join("") + (end?.events ?? "");
      if (events !== "") this.#onWritten(events);
    }
    this.#writing = null;
  }

  /** null: the response is lost. */
  async #append(
    record: ResponseRecord | null,
    pieces: readonly Piece[],
    end: ResponseEnd | null,
  ): Promise<number | null> {
    const entry = { number: this.#number, writer: this.#log.gatewayId, record, ...joined(pieces), end };
    try {
      const seq = await this.#insist(record === null, () => this.#log.append(this.#id, this.#after, entry));
      if (seq === null) throw new MargayError("cancelled", "The response was deleted, cancelled or taken over.");
      if (record !== null && end === null) await this.#insist(false, () => this.#log.mark(this.#id));
      return seq;
    } catch (thrown) {
      this.#state = "lost";
      this.#lostBy = asMargayError(thrown);
      this.#onLost(this.#lostBy);
      return null;
    }
  }

  /** Tries again while the bus is away. */
  async #insist<T>(patiently: boolean, work: () => Promise<T>): Promise<T> {
    const untilMs = this.#clock.monotonic() + (patiently ? PATIENCE_MS : BEGIN_PATIENCE_MS);
    for (;;) {
      try {
        return await work();
      } catch (thrown) {
        const error = asMargayError(thrown);
        const hopeless = error.code !== "bus_unavailable" || this.#clock.monotonic() > untilMs;
        if (hopeless) throw error;
        await this.#clock.sleep(PAUSE_MS);
      }
    }
  }
}

function joined(pieces: readonly Piece[]): { readonly tokens: Int32Array; readonly sizes: Int32Array } {
  const sizes = Int32Array.from(pieces, ({ tokens }) => tokens.length);
  const all = new Int32Array(sizes.reduce((sum, size) => sum + size, 0));
  let at = 0;
  for (const { tokens } of pieces) {
    all.set(tokens, at);
    at += tokens.length;
  }
  return { tokens: all, sizes };
}
