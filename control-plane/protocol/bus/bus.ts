import type { z } from "zod";
import type { JournalLimits, JournalOf } from "./journal.ts";

/** Ends a subscription. Idempotent. */
export interface Subscription {
  unsubscribe(): void;
}

/** State of the connection: `closed` is final. */
export type BusState = "connected" | "disconnected" | "closed";

/**
 * The one way processes talk. Messages are plain objects of the protocol's schemas; typed arrays travel binary.
 *
 * - `publish` never blocks and never throws for a lost connection: a message that cannot be sent is dropped and counted.
 *   A message that breaks its own schema is a mistake of the sender and throws `internal`; one above MAX_MESSAGE_BYTES
 *   throws `payload_too_large`.
 * - `request` rejects with MargayError `timeout` after `timeoutMs`, `worker_lost` at once when
 *   nobody listens on the subject, `bus_unavailable` while disconnected and when the connection is lost before the
 *   answer (the request may have been obeyed). A reply that breaks the schema is `internal`; a `Refused` that the
 *   schema does not list rejects with its code, one that it lists is returned.
 * - A handler receives only messages that match its schema; others are counted (`margay_bus_rejected_total`) and dropped,
 *   requests among them answered `Refused{invalid_request}`. A handler that throws answers `Refused` with the error's code.
 * - Messages on one subject from one sender arrive in order.
 */
export interface Bus {
  readonly state: BusState;
  onState(listener: (state: BusState) => void): Subscription;
  publish<S extends z.ZodType>(subject: string, schema: S, message: z.input<S>): void;
  request<Q extends z.ZodType, A extends z.ZodType>(
    subject: string,
    query: Q,
    message: z.input<Q>,
    answer: A,
    timeoutMs: number,
  ): Promise<z.output<A>>;
  subscribe<S extends z.ZodType>(subject: string, schema: S, handler: (message: z.output<S>) => void): Subscription;
  /** `queue`: among subscribers of one group exactly one answers. */
  respond<Q extends z.ZodType, A extends z.ZodType>(
    subject: string,
    query: Q,
    answer: A,
    handler: (message: z.output<Q>) => Promise<z.input<A>> | z.input<A>,
    queue?: string,
  ): Subscription;
  /** A journal of messages of one schema. Control plane only. */
  journal<S extends z.ZodType>(limits: JournalLimits, schema: S): JournalOf<S>;
  /** Next number of a counter that survives restarts (a revision of EPOCH_BUCKET). Control plane only. */
  nextEpoch(key: string): Promise<number>;
  /** Hands everything written to the network, within `timeoutMs`. */
  flush(timeoutMs: number): Promise<void>;
  /** Sends what is buffered and closes, within `timeoutMs`. */
  close(timeoutMs: number): Promise<void>;
}

/** Told what happens beside the messages: for logs and counters. Subjects are whole; `subjectKind` bounds them. */
export interface BusObserver {
  onState(state: BusState, detail: string): void;
  /** A message arrived that is not of its schema. */
  onRejected(subject: string, detail: string): void;
  /** A message was not sent: no connection. */
  onDropped(subject: string): void;
  /** The server denied a publication or subscription to this user. */
  onDenied(operation: "publish" | "subscribe", subject: string): void;
  /** A handler threw something else than a MargayError, or answered what its own schema forbids. */
  onHandlerError(subject: string, error: unknown): void;
}

/** Tells nobody. */
export const silentObserver: BusObserver = {
  onState() {},
  onRejected() {},
  onDropped() {},
  onDenied() {},
  onHandlerError() {},
};

/** What a bus needs of service/clock.ts, which this folder may not import. */
export interface BusTimers {
  after(ms: number, fn: () => void): { cancel(): void };
  sleep(ms: number): Promise<void>;
}
export interface BusRandom {
  uniform(): number;
  hex(bytes: number): string;
}
