import type { Bus } from "#protocol/bus/bus.ts";
import type { JournalOf } from "#protocol/bus/journal.ts";
import type { ModelName } from "#protocol/ids.ts";
import { LearnedPauses } from "#protocol/scaling.ts";
import { PAUSE_JOURNAL, subjects } from "#protocol/subjects.ts";
import type { GapHistogram } from "./keep-alive.ts";

export type PausesByModel = ReadonlyMap<ModelName, GapHistogram>;

/** What is remembered is of use for so long: requests of a month ago say little about the next one. */
const AGE_MS = 30 * 24 * 3600 * 1000;
const BYTES = 4 * 1024 * 1024;

/** Keeps what was learned of pauses beyond the life of the control plane that learned it: one entry, of the leader that wrote last. */
export class PauseMemory {
  readonly #journal: JournalOf<typeof LearnedPauses>;

  constructor(bus: Bus) {
    const kept = { maxAgeMs: AGE_MS, maxBytes: BYTES, lastOnly: true };
    this.#journal = bus.journal({ name: PAUSE_JOURNAL, subjects: subjects.learnedPauses(), ...kept }, LearnedPauses);
  }

  /** What the last leader knew. Rejects with `bus_unavailable`, and where the entry cannot be read. */
  async recall(): Promise<PausesByModel> {
    const entry = await this.#journal.last(subjects.learnedPauses());
    return new Map(entry?.value.models.map(({ model, counts, beyond }) => [model, { counts, beyond }]));
  }

  /** In place of what was kept before. False: another leader wrote at the same moment, nothing was done. Rejects as `recall`. */
  async keep(pauses: PausesByModel): Promise<boolean> {
    const subject = subjects.learnedPauses();
    const last = await this.#journal.last(subject);
    const models = [...pauses].map(([model, gaps]) => ({ model, counts: [...gaps.counts], beyond: gaps.beyond }));
    return (await this.#journal.append(subject, last?.seq ?? 0, { kind: "learned-pauses", models })) !== null;
  }
}
