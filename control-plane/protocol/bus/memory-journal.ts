import type { JournalEntry } from "./journal.ts";
import { subjectMatches } from "./subject-match.ts";

/** The journals of a message server inside one process. Keeps everything: what it stands in for bounds age and bytes. */
export class MemoryJournal {
  readonly #entries = new Map<string, JournalEntry<Uint8Array>[]>();
  readonly #added = new Map<string, number>();
  #seq = 0;

  append(subject: string, after: number, data: Uint8Array): number | null {
    const entries = this.#entries.get(subject) ?? [];
    if ((entries.at(-1)?.seq ?? 0) !== after) return null;
    entries.push({ seq: ++this.#seq, value: data.slice() });
    this.#entries.set(subject, entries);
    return this.#seq;
  }

  add(subject: string, id: string, data: Uint8Array): number {
    const known = this.#added.get(id);
    if (known !== undefined) return known;
    const seq = this.append(subject, this.last(subject)?.seq ?? 0, data)!;
    this.#added.set(id, seq);
    return seq;
  }

  read(subject: string, after: number, most?: number): readonly JournalEntry<Uint8Array>[] {
    return (this.#entries.get(subject) ?? []).filter(({ seq }) => seq > after).slice(0, most);
  }

  last(subject: string): JournalEntry<Uint8Array> | null {
    return this.#entries.get(subject)?.at(-1) ?? null;
  }

  purge(subject: string): void {
    this.#entries.delete(subject);
  }

  list(pattern: string): readonly string[] {
    const tokens = pattern.split(".");
    return [...this.#entries.keys()].filter((subject) => subjectMatches(tokens, subject.split(".")));
  }
}
