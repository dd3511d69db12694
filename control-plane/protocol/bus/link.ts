import type { BusState, Subscription } from "./bus.ts";
import type { JournalLimits, LinkJournal } from "./journal.ts";

/** One message as it arrived. `data` belongs to the link and is only valid during the call. */
export interface Delivery {
  readonly subject: string;
  readonly data: Uint8Array;
  /** Where an answer is expected. */
  readonly reply: string | null;
  /** Sent by the server in place of an answer: nobody listens on the subject of the request. */
  readonly noResponders: boolean;
}

export interface LinkListener {
  onState(state: BusState, detail: string): void;
  onDenied(operation: "publish" | "subscribe", subject: string): void;
}

/**
 * What a transport does for `TypedBus`: it moves bytes. `send` and `listen` never throw for a lost connection;
 * subscriptions outlive outages.
 */
export interface Link {
  readonly state: BusState;
  /** Subjects below this prefix reach only users of this role. */
  readonly inbox: string;
  /** Called once, before anything else. */
  attach(listener: LinkListener): void;
  /** False: there is no connection, and the message is gone. Throws `payload_too_large`. */
  send(subject: string, data: Uint8Array, reply: string | null): boolean;
  listen(subject: string, queue: string | null, onDelivery: (delivery: Delivery) => void): Subscription;
  journal(limits: JournalLimits): LinkJournal;
  nextEpoch(key: string): Promise<number>;
  flush(timeoutMs: number): Promise<void>;
  close(timeoutMs: number): Promise<void>;
}
