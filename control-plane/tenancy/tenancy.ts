import { MargayError } from "#protocol/errors.ts";
import { ANYBODY, type Caller } from "./caller.ts";
import type { Keyring } from "./keyring.ts";
import { type Limiter, type Meter, NO_METER, type OnRefused } from "./limiter.ts";

/** Who may send requests, and what it may use. */
export interface Tenancy {
  start(): void;
  /** Gives back what it holds of limits. */
  stop(): Promise<void>;
  /** The sender of a request by the key it presents. Throws `invalid_api_key`. */
  identify(presented: string | null): Caller;
  /** Whether the caller's key is still in the keys file. */
  holds(caller: Caller): boolean;
  /** The keys changed: what runs may have lost its right to. */
  onKeysChange(listener: () => void): () => void;
  /**
   * Lets a request of so many prompt tokens begin; its meter has to be ended. Rejects with `rate_limit_exceeded`, having
   * told the limits, or with `bus_unavailable`.
   */
  begin(caller: Caller, inputTokens: number, onRefused: OnRefused): Promise<Meter>;
}

/** No keys: everybody is the same tenant, without limits. */
export const openTenancy: Tenancy = {
  start: () => {},
  stop: async () => {},
  identify: () => ANYBODY,
  holds: () => true,
  onKeysChange: () => () => {},
  begin: async () => NO_METER,
};

/** Tenants and keys of a keys file. */
export class KeyedTenancy implements Tenancy {
  readonly #keyring: Keyring;
  readonly #limiter: Limiter;

  constructor(keyring: Keyring, limiter: Limiter) {
    this.#keyring = keyring;
    this.#limiter = limiter;
  }

  start(): void {
    this.#keyring.start();
    this.#limiter.start();
  }

  async stop(): Promise<void> {
    this.#keyring.stop();
    await this.#limiter.stop();
  }

  identify(presented: string | null): Caller {
    if (presented === null) {
      throw new MargayError("invalid_api_key", "An API key is needed: send it as `Authorization: Bearer KEY`.");
    }
    const key = this.#keyring.find(presented);
    if (key === null) throw new MargayError("invalid_api_key", "The API key is not known here, or its time is over.");
    return { tenant: key.tenant, keyDigest: key.digest, admin: key.admin, models: key.models };
  }

  holds(caller: Caller): boolean {
    return caller.keyDigest === null || this.#keyring.current.keys.has(caller.keyDigest);
  }

  onKeysChange(listener: () => void): () => void {
    return this.#keyring.onChange(listener);
  }

  begin({ tenant }: Caller, inputTokens: number, onRefused: OnRefused): Promise<Meter> {
    return this.#limiter.begin(tenant, inputTokens, onRefused);
  }
}
