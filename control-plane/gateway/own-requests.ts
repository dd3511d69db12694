import type { FastifyRequest } from "fastify";
import type { RequestId } from "#protocol/ids.ts";
import type { Random } from "#service/clock.ts";
import type { Caller } from "../tenancy/caller.ts";

/** On whose behalf this server asks itself. */
export interface OwnRequest {
  readonly requestId: RequestId;
  /** What the ledger knows it by: the same for what is asked again after a loss. */
  readonly chargedAs: RequestId;
  readonly caller: Caller;
  /** Its class among those that wait (flow/fair-queue.ts). */
  readonly urgency: number;
  /** Aborted when nobody waits for the answer any more. */
  readonly signal: AbortSignal;
}

/** Never told to anybody, and random for each request: no client can send one that holds. */
const HEADER = "x-margay-own";

/**
 * Requests that this server sends to its own routes, while they run.
 *
 *   announced -> recognised -> over
 */
export class OwnRequests {
  readonly #random: Random;
  readonly #open = new Map<string, OwnRequest>();

  constructor(random: Random) {
    this.#random = random;
  }

  /** Headers by which a request is recognised until `over` is called. */
  announce(own: OwnRequest): { readonly headers: Readonly<Record<string, string>>; over(): void } {
    const word = this.#random.hex(16);
    this.#open.set(word, own);
    return { headers: { [HEADER]: word }, over: () => void this.#open.delete(word) };
  }

  /** null: it came from outside. */
  find(headers: FastifyRequest["headers"]): OwnRequest | null {
    const word = headers[HEADER];
    return typeof word === "string" ? (this.#open.get(word) ?? null) : null;
  }
}
