import type { ExpertMap } from "#protocol/expert-map.ts";
import type { ExchangeEndpoint } from "#protocol/membership.ts";

/** Of an engine whose worker has several ranks. It begins no step before it has joined a group. */
export interface GroupOptions {
  /** Most ranks a group may have: buffers are made for so many. */
  readonly ranks: number;
  /** Host to listen on for rows of other hosts' ranks, and port (0: any). */
  readonly exchangeHost: string;
  readonly exchangePort: number;
  /** `auto` uses shared memory between ranks of one host, else TCP. */
  readonly exchangeTransport: "auto" | "tcp";
  /** How rows travel to experts of other ranks: `ref` sends fp32 and a deterministic engine bf16; both refuse `fp8`. */
  readonly exchangePayload: "bf16" | "fp8";
  /** Longest wait for a peer inside a step or while joining; then the group is lost. */
  readonly exchangeDeadlineMs: number;
}

/** One group: who steps together, until the epoch ends. */
export interface GroupSpec {
  readonly epoch: number;
  /** Place of this rank among the members. */
  readonly self: number;
  readonly members: readonly GroupPeer[];
  /** By which members know each other. */
  readonly secret: string;
  readonly map: ExpertMap;
}

export interface GroupPeer extends ExchangeEndpoint {
  readonly rankId: string;
}

/** Counted since the engine was opened, over all groups it was in. */
export interface ExchangeStats {
  /** Choices of each real expert by this rank's own rows, over all layers. */
  readonly expertLoads: Float64Array;
  /** The rows of all MoE layers that chose, and what they chose. */
  readonly routedRows: number;
  readonly realChoices: number;
  readonly zeroChoices: number;
  /** Sent to other ranks: rows for their experts, and outputs of our experts. */
  readonly bytesDispatched: number;
  readonly bytesCombined: number;
  /** Time the engine thread stood waiting for other ranks inside its steps: what no compute hid. */
  readonly exposedMs: number;
  /** How long after the first rank the last one began the step, summed over steps. */
  readonly skewMs: number;
  /** Messages of another epoch, refused. */
  readonly staleMessages: number;
}

/**
 * The part of an engine that makes it a rank of a group.
 *
 *   alone -> joining -> joined -> alone (left, or lost)
 *
 * Alone it keeps its sequences and its queue of plans and begins no step. Leaving loses nothing: the batch goes on in the
 * next group. A group that is lost fails the running step: its result has `skipped` entries only, no row of it counts,
 * and `group-lost` is told before it; what becomes of the sequences is up to whoever opened them.
 */
export interface GroupEngine {
  /** Real experts of the model, and the port of the exchange. */
  readonly experts: number;
  readonly exchangePort: number;
  /**
   * Resolves when every member has joined; rejects with `group_lost` when that does not happen in time, and with
   * `bad_argument` for a map that misses an expert or names a holder twice. Only while alone (else `bad_state`).
   */
  joinGroup(spec: GroupSpec): Promise<void>;
  /**
   * Takes part in the others' steps, without rows, until every member wants to leave; the engine is alone when it
   * resolves. Begins no step of its own meanwhile. A deadline is the caller's: `leaveGroup(true)` leaves at once, and the
   * others lose the group.
   */
  leaveGroup(atOnce: boolean): Promise<void>;
  /** Resolves when the weights that the map gives this rank are at hand. Steps go on. */
  prepareExperts(map: ExpertMap): Promise<void>;
  /** The prepared map holds from the first step on before which every member has called this. */
  switchExperts(version: number): void;
  exchangeStats(): ExchangeStats;
}

/** The engine as a rank of a group. Throws where it was not opened as one. */
export function asGroupEngine(engine: { readonly group?: GroupEngine | null }): GroupEngine {
  if (engine.group != null) return engine.group;
  throw new Error("this engine cannot be one of several ranks");
}
