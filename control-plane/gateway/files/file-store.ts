import type { Bus } from "#protocol/bus/bus.ts";
import type { JournalEntry, JournalOf } from "#protocol/bus/journal.ts";
import { MargayError } from "#protocol/errors.ts";
import { FileHead, FilePart } from "#protocol/file-entry.ts";
import type { GatewayId } from "#protocol/ids.ts";
import { FILE_JOURNAL, subjects } from "#protocol/subjects.ts";
import { accountToken } from "../../tenancy/account.ts";

/** How long files are kept, and how much of them. */
export interface FileLimits {
  readonly maxAgeMs: number;
  /** Of all files; a tenant's own are at most half of it. */
  readonly maxBytes: number;
  readonly maxFileBytes: number;
}

/** Most files of one tenant. */
export const MAX_FILES = 1_000;
/** A piece of a body, and how many pieces are read at a time: what a reader holds at most. */
export const PART_BYTES = 512 * 1024;
const PARTS_AT_A_TIME = 4;
/** Heads that are read at a time. */
const HEADS_AT_A_TIME = 16;
/** A body outlives its head by the longest time that a batch may work on it. */
const GRACE_MS = 8 * 24 * 3_600_000;

/** A file as its owner sees it. */
export interface StoredFile extends FileHead {
  readonly id: string;
}

/**
 * Owns the words in which files are kept: the head of each and its body, in pieces, by tenant.
 *
 *   body written -> head put (there is a file) -> removed | expired
 *
 * S1 Nobody finds a file of another tenant: its name is in the subject.
 * S2 A file that is found can be read to its end, unless it is removed meanwhile.
 * S3 Ids rise with the time at which they were made.
 */
export class FileStore {
  readonly gatewayId: GatewayId;
  readonly limits: FileLimits;
  readonly #heads: JournalOf<typeof FileHead>;
  readonly #parts: JournalOf<typeof FilePart>;

  constructor(bus: Bus, gatewayId: GatewayId, limits: FileLimits) {
    this.gatewayId = gatewayId;
    this.limits = limits;
    const journal = {
      ...{ name: FILE_JOURNAL, subjects: subjects.filesAll(), refusesWhenFull: true },
      ...{ maxAgeMs: limits.maxAgeMs + GRACE_MS, maxBytes: limits.maxBytes },
    };
    this.#heads = bus.journal(journal, FileHead);
    this.#parts = bus.journal(journal, FilePart);
  }

  /** null: there is none of this tenant, or its time is over. */
  async find(tenant: string, id: string, nowMs: number): Promise<StoredFile | null> {
    if (!/^file-[0-9a-f]{24}$/.test(id)) return null;
    const head = await this.#heads.last(subjects.fileHead(accountToken(tenant), id));
    if (head === null || head.value.expiresAt * 1000 <= nowMs) return null;
    return { id, ...head.value };
  }

  /** Ids of a tenant's files, the oldest first; some may have expired. */
  async ids(tenant: string): Promise<readonly string[]> {
    const found = await this.#heads.list(subjects.fileHeads(accountToken(tenant)));
    return found.map((subject) => subject.split(".")[3]!).sort();
  }

  /** Those of these files that are there, in the same order. */
  async findAll(tenant: string, ids: readonly string[], nowMs: number): Promise<readonly StoredFile[]> {
    const found: (StoredFile | null)[] = [];
    for (let at = 0; at < ids.length; at += HEADS_AT_A_TIME) {
      const some = ids.slice(at, at + HEADS_AT_A_TIME);
      found.push(...(await Promise.all(some.map((id) => this.find(tenant, id, nowMs)))));
    }
    return found.filter((one) => one !== null);
  }

  /** Makes a body a file. Once it is one, it stays as it is. */
  async publish(tenant: string, id: string, head: FileHead): Promise<void> {
    await this.#heads.append(subjects.fileHead(accountToken(tenant), id), 0, head);
  }

  /** Appends a piece behind entry `after`, 0: as the first. null: somebody else did. `payload_too_large`: no room. */
  append(tenant: string, id: string, after: number, part: FilePart): Promise<number | null> {
    return this.#parts.append(subjects.fileBody(accountToken(tenant), id), after, part);
  }

  lastPart(tenant: string, id: string): Promise<JournalEntry<FilePart> | null> {
    return this.#parts.last(subjects.fileBody(accountToken(tenant), id));
  }

  /** The pieces of a body, few at a time. Rejects with `not_found` where one is gone. */
  async *parts(tenant: string, id: string): AsyncGenerator<FilePart> {
    const subject = subjects.fileBody(accountToken(tenant), id);
    let after = 0;
    for (let number = 0; ; ) {
      const some = await this.#parts.read(subject, after, PARTS_AT_A_TIME);
      if (some.length === 0) return;
      for (const { seq, value } of some) {
        if (value.number !== number++) throw noFile();
        after = seq;
        yield value;
      }
    }
  }

  async remove(tenant: string, id: string): Promise<void> {
    await this.#heads.purge(subjects.fileHead(accountToken(tenant), id));
    await this.#parts.purge(subjects.fileBody(accountToken(tenant), id));
  }
}

/** Twelve bytes: the time, so that names sort by it, and chance. */
export function timedId(nowMs: number, random: { hex(bytes: number): string }): string {
  return nowMs.toString(16).padStart(12, "0") + random.hex(6);
}

export function noFile(param: string = "file_id"): MargayError {
  const rule = "There is no file with this id; it may have been deleted or be too old.";
  return new MargayError("not_found", rule, { param });
}
