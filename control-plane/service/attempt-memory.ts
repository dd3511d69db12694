import type { RequestId } from "#protocol/ids.ts";
import type { RequestHead } from "#protocol/request.ts";
import type { Clock } from "./clock.ts";

/** How long an ended attempt is remembered, and how many are. */
const KEPT_MS = 60_000;
const KEPT_ATTEMPTS = 4_096;

interface Memory<E> {
  readonly attempt: number;
  readonly ending: E;
  readonly untilMs: number;
}

/**
 * Remembers for a while how the latest attempt of each request ended on this rank, so that a message that comes late,
 * twice, or before the one it belongs behind is recognised. Bounded in time and number.
 *
 *   ended -> remembered -> forgotten (after KEPT_MS, or pushed out by newer ones)
 */
export class AttemptMemory<E> {
  readonly #clock: Clock;
  /** Oldest first. */
  readonly #memories = new Map<RequestId, Memory<E>>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** An ending replaces what was known of this and earlier attempts; of a later attempt nothing is forgotten. */
  note(head: RequestHead, ending: E): void {
    this.#forget();
    if ((this.#memories.get(head.requestId)?.attempt ?? -1) > head.attempt) return;
    this.#memories.delete(head.requestId);
    this.#memories.set(head.requestId, {
      attempt: head.attempt,
      ending,
      untilMs: this.#clock.monotonic() + KEPT_MS,
    });
  }

  /** The ending of this attempt, `superseded` when a later attempt has ended here, or null. */
  recall(head: RequestHead): E | "superseded" | null {
    this.#forget();
    const memory = this.#memories.get(head.requestId);
    if (memory === undefined || memory.attempt < head.attempt) return null;
    return memory.attempt === head.attempt ? memory.ending : "superseded";
  }

  #forget(): void {
    const now = this.#clock.monotonic();
    for (const [requestId, memory] of this.#memories) {
      if (memory.untilMs > now && this.#memories.size <= KEPT_ATTEMPTS) return;
      this.#memories.delete(requestId);
    }
  }
}
