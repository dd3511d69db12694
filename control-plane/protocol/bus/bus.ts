import type { z } from "zod";

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
 * - `request` rejects with MargayError `timeout` after `timeoutMs`, `worker_lost` at once when
 *   nobody listens on the subject, `bus_unavailable` while disconnected. A reply that breaks the schema is `internal`.
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
  /** Next number of a counter that survives restarts (a revision of EPOCH_BUCKET). Control plane only. */
  nextEpoch(key: string): Promise<number>;
  /** Hands everything written to the network, within `timeoutMs`. */
  flush(timeoutMs: number): Promise<void>;
  /** Sends what is buffered and closes, within `timeoutMs`. */
  close(timeoutMs: number): Promise<void>;
}
