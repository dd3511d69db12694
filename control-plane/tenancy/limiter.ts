import type { Bus } from "#protocol/bus/bus.ts";
import { ACCOUNT_JOURNAL, subjects } from "#protocol/subjects.ts";
import { TenantAccount } from "#protocol/tenancy.ts";
import type { Timer } from "#service/clock.ts";
import { Account, type AccountParts } from "./account.ts";
import type { Limits, Tenant } from "./key-file.ts";
import { limitHeaders } from "./limit-headers.ts";

/** What a running request uses up, and the end of it. */
export interface Meter {
  /** `x-ratelimit-*`, as they are when the request begins. */
  readonly headers: Readonly<Record<string, string>>;
  /** Tokens were generated, or read beyond those known when the request began. */
  charge(output: number, input?: number): void;
  /** The request is over. Idempotent. */
  end(): void;
}

/** A refused request is told of its limits as well. */
export type OnRefused = (headers: Readonly<Record<string, string>>) => void;

export const NO_METER: Meter = { headers: {}, charge: () => {}, end: () => {} };

const SETTLE_MS = 1_000;
/** An account that nobody writes for so long is full again anyhow. */
const ACCOUNT_AGE_MS = 24 * 3600 * 1000;
const ACCOUNT_BYTES = 16 * 1024 * 1024;

export interface LimiterParts extends Omit<AccountParts, "journal"> {
  readonly bus: Bus;
}

/** Owns the accounts of the tenants that have limits and use them. */
export class Limiter {
  readonly #accounts = new Map<string, Account>();
  readonly #parts: AccountParts;
  #timer: Timer | null = null;

  constructor({ bus, ...parts }: LimiterParts) {
    const journal = bus.journal(
      {
        ...{ name: ACCOUNT_JOURNAL, subjects: subjects.tenantAccounts(), lastOnly: true, volatile: true },
        ...{ maxAgeMs: ACCOUNT_AGE_MS, maxBytes: ACCOUNT_BYTES },
      },
      TenantAccount,
    );
    this.#parts = { ...parts, journal };
  }

  start(): void {
    this.#timer ??= this.#parts.clock.every(SETTLE_MS, () => void this.settle());
    // The journal is opened by its first question: not by one that a request waits for.
    void this.#parts.journal.last(subjects.tenantAccount("-")).catch(() => {});
  }

  /** Gives everything back. */
  async stop(): Promise<void> {
    this.#timer?.cancel();
    this.#timer = null;
    await this.settle(0);
  }

  /** Lets a request begin. Rejects with `rate_limit_exceeded`, having told `onRefused`, or with `bus_unavailable`. */
  async begin(tenant: Tenant, inputTokens: number, onRefused: OnRefused): Promise<Meter> {
    const { limits } = tenant;
    if (!isLimited(limits)) return NO_METER;
    let account = this.#accounts.get(tenant.name);
    if (account === undefined) {
      account = new Account(this.#parts, tenant);
      this.#accounts.set(tenant.name, account);
    }
    const own = account;
    own.tenant = tenant;
    try {
      await own.begin({ input: inputTokens });
    } catch (error) {
      onRefused(limitHeaders(limits, own.left));
      throw error;
    }
    let over = false;
    return {
      headers: limitHeaders(limits, own.left),
      charge: (output, input) => own.charge(output, input),
      end: () => {
        if (!over) own.end();
        over = true;
      },
    };
  }

  /** Accounts give back what they do not use. Never rejects: what could not be said now is said the next time. */
  async settle(quietMs = SETTLE_MS): Promise<void> {
    await Promise.allSettled(
      [...this.#accounts].map(async ([name, account]) => {
        await account.settle(quietMs);
        if (account.idle) this.#accounts.delete(name);
      }),
    );
  }
}

function isLimited(limits: Limits): boolean {
  const { monthlyBudget: _budget, ...rates } = limits;
  return Object.values(rates).some((limit) => limit !== null);
}
