import type { Engine, EngineEvent } from "#native";
import type { Reservation, SequenceHandle } from "#protocol/kv.ts";

interface Send {
  readonly handle: SequenceHandle;
  readonly waiters: (() => void)[];
}

/** How a send ended; `cause` null: the decode rank has every page. */
export interface SendEnd {
  readonly handle: SequenceHandle;
  readonly cause: string | null;
}

/**
 * Owns the sends of this rank: which sequences have pages on their way to a decode rank. The bytes go natively; this
 * only starts a send and hears of its end.
 *
 *   begun -> sent | failed
 */
export class KvSender {
  readonly #engine: Engine;
  readonly #sends = new Map<number, Send>();

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** The pages of `handle` go to the reservation as they are computed. Throws what the engine throws. */
  begin(handle: SequenceHandle, reservation: Reservation, deadlineMs: number): void {
    const { endpoint, epoch, cachedTokens } = reservation;
    this.#engine.exportTo(handle, { ...endpoint, epoch, handle: reservation.handle, cachedTokens, deadlineMs });
    this.#sends.set(handle.slot, { handle, waiters: [] });
  }

  /** Null for an event that ends no send of this sender. */
  onEvent(event: EngineEvent): SendEnd | null {
    if (event.kind !== "sent" && event.kind !== "send-failed") return null;
    const send = this.#find(event.handle);
    if (send === null) return null;
    this.#sends.delete(event.handle.slot);
    for (const resolve of send.waiters) resolve();
    return { handle: event.handle, cause: event.kind === "sent" ? null : event.cause };
  }

  /** Resolves when no page of this sequence is held for the decode rank any more. */
  settled(handle: SequenceHandle): Promise<void> {
    const send = this.#find(handle);
    return send === null ? Promise.resolve() : new Promise((resolve) => send.waiters.push(resolve));
  }

  #find(handle: SequenceHandle): Send | null {
    const send = this.#sends.get(handle.slot);
    return send?.handle.generation === handle.generation ? send : null;
  }
}
