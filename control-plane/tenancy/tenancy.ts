import { type ErrorCode, MargayError } from "#protocol/errors.ts";
import type { ModelName, RequestId } from "#protocol/ids.ts";
import type { LedgerEntry, UsageRow } from "#protocol/tenancy.ts";
import { atMost } from "#service/at-most.ts";
import type { Clock } from "#service/clock.ts";
import type { Metrics } from "#service/metrics.ts";
import { dayOf, nextMonth } from "./calendar.ts";
import { ANYBODY, type Caller } from "./caller.ts";
import { costOf } from "./cost.ts";
import type { ApiKey } from "./key-file.ts";
import type { Keyring } from "./keyring.ts";
import type { Ledger } from "./ledger.ts";
import { type Limiter, type Meter, NO_METER, type OnRefused } from "./limiter.ts";
import { decimalOf, PICOS_PER_MICRO, type Picos } from "./money.ts";

/** What is known of a request when it begins. */
export interface Work {
  readonly requestId: RequestId;
  readonly model: ModelName;
  readonly inputTokens: number;
}

/** What a request used up. */
export interface Used {
  readonly outcome: "ok" | ErrorCode;
  /** Where more came to be read than was known when the request began. */
  readonly inputTokens?: number;
  readonly cachedTokens: number;
  readonly outputTokens: number;
  readonly reasoningTokens: number;
  readonly prefillGpuMs: number;
  readonly decodeGpuMs: number;
}

/** The right of one request to run. */
export interface Ticket {
  /** `x-ratelimit-*`, as they are when the request begins. */
  readonly headers: Readonly<Record<string, string>>;
  /** Tokens were generated, or read beyond those known when the request began. */
  charge(output: number, input?: number): void;
  /** The request is over. Idempotent. */
  end(): void;
  /** What it used up, for the ledger: once, at any time after its end. null: somebody else goes on with it. */
  record(used: Used | null): void;
}

export interface UsageOfDay {
  readonly day: string;
  readonly rows: readonly UsageRow[];
}

export interface Usage {
  readonly days: readonly UsageOfDay[];
  readonly currency: string;
}

/** Who may send requests, and what it may use. */
export interface Tenancy {
  start(): void;
  /** Gives back what it holds of limits, and writes what is to be written. */
  stop(): Promise<void>;
  /** The sender of a request by the key it presents. Throws `invalid_api_key`. */
  identify(presented: string | null): Caller;
  /** Whether the caller's key is still in the keys file. */
  holds(caller: Pick<Caller, "keyDigest">): boolean;
  /** The sender whose key has this digest, as it holds now; null: it holds no more. */
  recall(keyDigest: string | null): Caller | null;
  /** The keys changed: what runs may have lost its right to. */
  onKeysChange(listener: () => void): () => void;
  /**
   * Lets a request begin; its ticket has to be ended, and what it used recorded. Rejects with `insufficient_quota`, with
   * `rate_limit_exceeded`, having told the limits, or with `bus_unavailable`.
   */
  begin(caller: Caller, work: Work, onRefused: OnRefused): Promise<Ticket>;
  /** What was used up on these days. Rejects with `bus_unavailable`, or `not_allowed` where nothing is written down. */
  usage(days: readonly string[]): Promise<Usage>;
  /** The ticket of a request that another control plane let in, and that goes on here: under no limits. */
  resume(tenant: string, work: Work, arrivedMs: number): Ticket;
}

/** What the sender of a request hears whose key is taken from the keys file meanwhile. */
export const KEY_REVOKED = "The API key was revoked.";

export const NO_TICKET: Ticket = { headers: {}, charge: () => {}, end: () => {}, record: () => {} };

/** No keys: everybody is the same tenant, without limits, and nothing is written down. */
export const openTenancy: Tenancy = {
  start: () => {},
  stop: async () => {},
  identify: () => ANYBODY,
  holds: () => true,
  recall: () => ANYBODY,
  onKeysChange: () => () => {},
  begin: async () => NO_TICKET,
  resume: () => NO_TICKET,
  usage: async () => {
    throw new MargayError("not_allowed", "Usage is written down where keys are set (MARGAY_KEYS_FILE).");
  },
};

export interface TenancyParts {
  readonly keyring: Keyring;
  readonly limiter: Limiter;
  readonly ledger: Ledger;
  readonly clock: Clock;
  readonly metrics: Metrics;
}

/** Requests that ended say within this time what they used up. */
const RECORD_MS = 2_200;
/** A process that ends has five seconds for everything. */
const STOP_MS = 1_000;
const MOST_LABELS = 200;

/**
 * Tenants and keys of a keys file. Owns the tickets that were not recorded.
 *
 *   begun -> ended -> recorded
 */
export class KeyedTenancy implements Tenancy {
  readonly #parts: TenancyParts;
  readonly #open = new Set<Ticket>();
  /** Tenants with a label of their own. */
  readonly #labelled = new Set<string>();

  constructor(parts: TenancyParts) {
    this.#parts = parts;
  }

  start(): void {
    this.#parts.keyring.start();
    this.#parts.limiter.start();
    this.#parts.ledger.start();
  }

  async stop(): Promise<void> {
    const { keyring, limiter, ledger, clock } = this.#parts;
    keyring.stop();
    await Promise.all([this.#recorded(clock.monotonic() + RECORD_MS), atMost(clock, STOP_MS, limiter.stop())]);
    await ledger.stop(STOP_MS);
  }

  async #recorded(untilMs: number): Promise<void> {
    const { clock } = this.#parts;
    while (this.#open.size > 0 && clock.monotonic() < untilMs) await clock.sleep(20);
  }

  identify(presented: string | null): Caller {
    if (presented === null) {
      throw new MargayError("invalid_api_key", "An API key is needed: send it as `Authorization: Bearer KEY`.");
    }
    const key = this.#parts.keyring.find(presented);
    if (key === null) throw new MargayError("invalid_api_key", "The API key is not known here, or its time is over.");
    return callerWith(key);
  }

  recall(keyDigest: string | null): Caller | null {
    const key = keyDigest === null ? null : this.#parts.keyring.holding(keyDigest);
    return key === null ? null : callerWith(key);
  }

  holds({ keyDigest }: Pick<Caller, "keyDigest">): boolean {
    return keyDigest === null || this.#parts.keyring.current.keys.has(keyDigest);
  }

  onKeysChange(listener: () => void): () => void {
    return this.#parts.keyring.onChange(listener);
  }

  async begin(caller: Caller, work: Work, onRefused: OnRefused): Promise<Ticket> {
    const { limiter, clock, metrics } = this.#parts;
    const { tenant } = caller;
    const arrivedMs = clock.now();
    try {
      await this.#checkBudget(caller);
      const meter = await limiter.begin(tenant, work.inputTokens, onRefused);
      return this.#ticket(meter, tenant.name, work, arrivedMs);
    } catch (error) {
      const { code } = error as MargayError;
      const outcome = code === "insufficient_quota" ? "over_budget" : code === "rate_limit_exceeded" ? "limited" : null;
      if (outcome !== null)
        metrics.count("margay_tenant_requests_total", { tenant: this.#label(tenant.name), outcome });
      throw error;
    }
  }

  resume(tenant: string, work: Work, arrivedMs: number): Ticket {
    return this.#ticket(NO_METER, tenant, work, arrivedMs);
  }

  #ticket(meter: Meter, tenant: string, work: Work, arrivedMs: number): Ticket {
    const ticket: Ticket = {
      ...meter,
      record: (used) => {
        if (this.#open.delete(ticket) && used !== null) this.#record(tenant, work, arrivedMs, used);
      },
    };
    this.#open.add(ticket);
    return ticket;
  }

  async usage(days: readonly string[]): Promise<Usage> {
    const { ledger, keyring } = this.#parts;
    const read = await Promise.all(days.map(async (day) => ({ day, rows: (await ledger.usage(day)).rows })));
    return { days: read, currency: keyring.current.currency };
  }

  async #checkBudget({ tenant }: Caller): Promise<void> {
    const { ledger, keyring, clock } = this.#parts;
    const budget = tenant.limits.monthlyBudget;
    if (budget === null) return;
    const picos = BigInt(budget) * PICOS_PER_MICRO;
    if ((await ledger.spent(tenant.name)) < picos) return;
    const amount = `${decimalOf(picos).replace(/\.?0+$/, "")} ${keyring.current.currency}`;
    const anew = dayOf(nextMonth(clock.now()));
    throw new MargayError(
      "insufficient_quota",
      `The month's budget of ${amount} is used up; the next begins on ${anew}.`,
    );
  }

  #record(tenant: string, work: Work, arrivedMs: number, used: Used): void {
    const { ledger, keyring } = this.#parts;
    const { prefillGpuMs, decodeGpuMs, ...counts } = used;
    const touched = used.outputTokens + used.cachedTokens + prefillGpuMs + decodeGpuMs > 0;
    // A request that was refused on its way, or left before anybody began, used nothing.
    if (!touched) return;
    const facts = {
      ...work,
      ...counts,
      ...{ tenant, arrivedMs },
      prefillGpuMicros: Math.round(prefillGpuMs * 1000),
      decodeGpuMicros: Math.round(decodeGpuMs * 1000),
    };
    const cost = costOf(facts, keyring.current.prices.get(work.model) ?? null);
    const entry: LedgerEntry = { kind: "ledger-entry", ...facts, costPicos: cost.toString() };
    ledger.record(entry);
    this.#count(this.#label(tenant), entry, cost);
  }

  #count(tenant: string, entry: LedgerEntry, cost: Picos): void {
    const { metrics } = this.#parts;
    metrics.count("margay_tenant_requests_total", { tenant, outcome: entry.outcome === "ok" ? "ok" : "failed" });
    for (const [kind, tokens] of [
      ["input", entry.inputTokens],
      ["cached", entry.cachedTokens],
      ["output", entry.outputTokens],
      ["reasoning", entry.reasoningTokens],
    ] as const)
      metrics.count("margay_tenant_tokens_total", { tenant, kind }, tokens);
    metrics.count("margay_tenant_gpu_seconds_total", { tenant, role: "prefill" }, entry.prefillGpuMicros / 1e6);
    metrics.count("margay_tenant_gpu_seconds_total", { tenant, role: "decode" }, entry.decodeGpuMicros / 1e6);
    metrics.count("margay_tenant_cost_total", { tenant }, Number(cost) / 1e12);
  }

  /** The tenant's label in metrics: its name, for the first MOST_LABELS of them. */
  #label(tenant: string): string {
    if (this.#labelled.size < MOST_LABELS) this.#labelled.add(tenant);
    return this.#labelled.has(tenant) ? tenant : "others";
  }
}

function callerWith({ tenant, digest, admin, models }: ApiKey): Caller {
  return { tenant, keyDigest: digest, admin, models };
}
