import type { z } from "zod";

/** What a journal is called, and what it keeps. */
export interface JournalLimits {
  readonly name: string;
  /** Its subjects, as a pattern. No other journal may have one of them. */
  readonly subjects: string;
  /** The oldest entries go when they are older than this, or when all together have more bytes. */
  readonly maxAgeMs: number;
  readonly maxBytes: number;
  /** What would be too many bytes is refused with `payload_too_large` instead, and nothing goes for it. */
  readonly refusesWhenFull?: boolean;
  /** An entry takes the place of the one before it on its subject. */
  readonly lastOnly?: boolean;
  /** Kept in the server's memory: quick, and gone with the server. */
  readonly volatile?: boolean;
  /** So long `add` knows the ids it has seen. */
  readonly addedOnceMs?: number;
}

/** One entry. `seq` rises over all subjects of a journal and is never 0. */
export interface JournalEntry<T> {
  readonly seq: number;
  readonly value: T;
}

/**
 * Messages that outlive processes, in order by subject. Every call rejects with `bus_unavailable` where the server can't be
 * asked, and ends within some seconds.
 *
 * J1 An entry that was appended is read by everybody from then on, until its age, the bytes or `purge` take it.
 * J2 `add` adds an entry once for each id, however often it is called within `addedOnceMs`.
 * J3 `append` names the last entry that its caller knows; of several callers who know the same one alone succeeds.
 */
export interface Journal<T> {
  /** Appends behind entry `after` of the subject, 0: as the first. null: another entry is the last one, nothing was done. */
  append(subject: string, after: number, message: T): Promise<number | null>;
  /** Appends behind whatever is the last entry, once for each id. Resolves with the entry's number. */
  add(subject: string, id: string, message: T): Promise<number>;
  /** The entries behind `after`, oldest first; `most`: the first so many of them, or fewer where those are large. */
  read(subject: string, after: number, most?: number): Promise<readonly JournalEntry<T>[]>;
  /** The last entry; null: there is none. */
  last(subject: string): Promise<JournalEntry<T> | null>;
  /** Takes all entries of a subject away. */
  purge(subject: string): Promise<void>;
  /** Subjects of the pattern that have entries. */
  list(pattern: string): Promise<readonly string[]>;
}

/** The same in bytes, as a link does it. */
export type LinkJournal = Journal<Uint8Array>;

/** A journal of one schema. */
export type JournalOf<S extends z.ZodType> = Journal<z.output<S>>;
