import type { JournalOf } from "#protocol/bus/journal.ts";
import { MargayError } from "#protocol/errors.ts";
import type { GatewayId } from "#protocol/ids.ts";
import { subjects } from "#protocol/subjects.ts";
import { METERED, type TenantAccount } from "#protocol/tenancy.ts";
import { backoffMs } from "#service/backoff.ts";
import type { Clock, Random } from "#service/clock.ts";
import type { Limits, Tenant } from "./key-file.ts";
import { type Amounts, capacities, refilled, untilEnough } from "./token-bucket.ts";

export interface AccountParts {
  readonly journal: JournalOf<typeof TenantAccount>;
  readonly clock: Clock;
  readonly random: Random;
  readonly gatewayId: GatewayId;
}

/** What a request needs before it begins. What it will generate is charged as it comes. */
export type Need = Pick<Amounts, "input">;

/** An account as it is to be written, and what that gives a control plane. */
interface Plan {
  readonly account: TenantAccount;
  readonly taken: Amounts;
  /** Requests that may run here. */
  readonly slots: number;
  readonly refusal: MargayError | null;
}

/** A control plane takes at most this share of a bucket to spend by itself. */
const LEASE_SHARE = 1 / 16;
/** Places of a control plane that was not heard of for so long are free again. */
const SLOT_MS = 15_000;
const RENEW_MS = 5_000;
/** While the bus is away a request waits so long to be counted. */
const AWAY_MS = 10_000;
/** Of control planes that write at the same moment one succeeds; the pause keeps the others from losing in step again. */
const AGAIN = { firstMs: 4, mostMs: 200 };
const NONE = { requests: 0, input: 0, output: 0, total: 0 };

/**
 * Owns what this control plane may still use of one tenant's limits without asking the others.
 *
 *   idle -> holding (a lease of each bucket, places for running requests) -> settled -> idle
 *
 * L1 what is held here was taken out of the shared bucket before: requests and prompt tokens admitted by all control planes
 *    together never exceed the buckets, a minute's worth and what ran in since
 * L2 what is generated is charged when it comes, also below zero; a bucket in debt admits nobody. Beyond the limit goes at
 *    most what the requests generate that were admitted before, and the time to come pays for it
 * L3 running requests of all control planes together never exceed the limit, but for those of one that was silent for SLOT_MS
 * L4 what is held is given back within a second of the last use, so that another control plane may have it
 */
export class Account {
  readonly #parts: AccountParts;
  #tenant: Tenant;
  #held = { ...NONE };
  /** The shared buckets as they were when last written. */
  #shared: Pick<TenantAccount, "levels" | "atMs"> | null = null;
  #running = 0;
  #slots = 0;
  #slotsMs = 0;
  #usedMs: number;
  #turn: Promise<unknown> = Promise.resolve();
  #exchanging = 0;

  constructor(parts: AccountParts, tenant: Tenant) {
    this.#parts = parts;
    this.#tenant = tenant;
    this.#usedMs = parts.clock.monotonic();
  }

  /** The limits may have changed. */
  set tenant(tenant: Tenant) {
    this.#tenant = tenant;
  }

  get running(): number {
    return this.#running;
  }

  /** Nothing runs, nothing is held, nobody asks: it may be forgotten. */
  get idle(): boolean {
    return (
      this.#running === 0 &&
      this.#exchanging === 0 &&
      this.#slots === 0 &&
      METERED.every((metered) => this.#held[metered] === 0)
    );
  }

  /** What is left of each bucket, as far as this control plane knows. */
  get left(): Amounts {
    const limits = this.#tenant.limits;
    const capacity = capacities(limits);
    const shared = this.#shared === null ? null : refilled(this.#shared, limits, this.#parts.clock.now()).levels;
    const of = (metered: keyof Amounts) =>
      Math.max(0, Math.floor(shared === null ? (capacity[metered] ?? 0) : shared[metered] + this.#held[metered]));
    return { requests: of("requests"), input: of("input"), output: of("output"), total: of("total") };
  }

  /**
   * Lets a request begin; `end` has to be called when it is over. Rejects with `rate_limit_exceeded` and when to come back,
   * or with `bus_unavailable`.
   */
  async begin({ input }: Need): Promise<void> {
    const need = { requests: 1, input, output: 0, total: input };
    this.#usedMs = this.#parts.clock.monotonic();
    if (!this.#take(need)) {
      await this.#alone(async () => {
        // Whoever was before may have brought enough for this one as well.
        if (!this.#take(need)) await this.#exchange(need);
      });
    }
  }

  end(): void {
    this.#running--;
    this.#usedMs = this.#parts.clock.monotonic();
  }

  /** Tokens were generated, or read beyond those known when the request began. */
  charge(output: number, input = 0): void {
    const capacity = capacities(this.#tenant.limits);
    if (capacity.output !== null) this.#held.output -= output;
    if (capacity.input !== null) this.#held.input -= input;
    if (capacity.total !== null) this.#held.total -= output + input;
  }

  /** Gives back what is not used, pays debts, keeps the places of what runs. Called about every second. */
  async settle(quietMs: number): Promise<void> {
    const nowMs = this.#parts.clock.monotonic();
    const quiet = nowMs - this.#usedMs >= quietMs && METERED.some((metered) => this.#held[metered] > 0);
    const debt = METERED.some((metered) => this.#held[metered] < 0);
    const spare = this.#slots > this.#running;
    const renew = this.#slots > 0 && nowMs - this.#slotsMs >= RENEW_MS;
    if (quiet || debt || spare || renew) await this.#alone(() => this.#exchange(null));
  }

  /** Out of what is held here; false: that is not enough. */
  #take(need: Amounts): boolean {
    const { limits } = this.#tenant;
    const capacity = capacities(limits);
    if (limits.concurrency !== null && this.#running >= this.#slots) return false;
    for (const metered of METERED) {
      if (capacity[metered] !== null && this.#held[metered] < Math.max(need[metered], 1)) return false;
    }
    for (const metered of METERED) this.#held[metered] -= this.#limited(need, metered);
    this.#running++;
    return true;
  }

  /** One exchange at a time. */
  #alone<T>(work: () => Promise<T>): Promise<T> {
    this.#exchanging++;
    const mine = this.#turn.then(work).finally(() => this.#exchanging--);
    this.#turn = mine.catch(() => {});
    return mine;
  }

  /**
   * Puts what is held back into the shared buckets, and takes out what `need` asks for and a lease beyond. Until that is
   * written nothing is held: what was on its way when the bus failed is given up, rather than spent twice.
   */
  async #exchange(need: Amounts | null): Promise<void> {
    const { journal, clock, random } = this.#parts;
    let returned = this.#held;
    this.#held = { ...NONE };
    this.#slots = 0;
    const subject = subjects.tenantAccount(accountToken(this.#tenant.name));
    const untilMs = clock.monotonic() + AWAY_MS;
    for (let tried = 1; ; tried++) {
      let sent = false;
      try {
        const last = await journal.last(subject);
        const plan = this.#plan(last?.value ?? null, returned, need);
        sent = true;
        if ((await journal.append(subject, last?.seq ?? 0, plan.account)) !== null) return this.#settled(plan, need);
      } catch (error) {
        if (!(error instanceof MargayError) || error.code !== "bus_unavailable") throw error;
        if (sent) returned = NONE;
      }
      if (clock.monotonic() >= untilMs)
        throw new MargayError("bus_unavailable", "The tenant's limits could not be counted.");
      await clock.sleep(backoffMs(AGAIN, tried, random));
    }
  }

  /** The account is written: what it gives this control plane is held. Throws the refusal. */
  #settled({ account, slots, refusal, taken }: Plan, need: Amounts | null): void {
    this.#shared = account;
    this.#slots = slots;
    this.#slotsMs = this.#parts.clock.monotonic();
    if (need === null) return;
    if (refusal !== null) throw refusal;
    for (const metered of METERED) this.#held[metered] += taken[metered] - this.#limited(need, metered);
    this.#running++;
  }

  /** The account as it is to be written, and what that gives this control plane. */
  #plan(last: TenantAccount | null, returned: Amounts, need: Amounts | null): Plan {
    const { gatewayId, clock } = this.#parts;
    const { limits } = this.#tenant;
    const nowMs = clock.now();
    const shared = last === null ? full(this.#tenant, nowMs) : refilled(last, limits, nowMs);
    const levels = { ...NONE };
    for (const metered of METERED) levels[metered] = shared.levels[metered] + returned[metered];
    const others = (last?.slots ?? []).filter((one) => one.gatewayId !== gatewayId && one.untilMs > nowMs);
    const elsewhere = others.reduce((sum, { count }) => sum + count, 0);
    const refusal =
      need === null ? null : refusalOf(untilEnough(levels, need, limits), elsewhere + this.#running, limits);
    const begins = need !== null && refusal === null;
    const taken = begins ? leaseOf(levels, need, this.#tenant) : NONE;
    for (const metered of METERED) levels[metered] -= taken[metered];
    const slots = limits.concurrency === null ? 0 : this.#running + (begins ? 1 : 0);
    const own = { gatewayId, count: slots, untilMs: nowMs + SLOT_MS };
    const account: TenantAccount = {
      kind: "tenant-account",
      ...{ atMs: shared.atMs, levels },
      slots: slots > 0 ? [...others, own] : others,
    };
    return { account, taken, slots, refusal };
  }

  /** What a need takes out of a bucket: nothing where there is none. */
  #limited(need: Amounts, metered: keyof Amounts): number {
    return capacities(this.#tenant.limits)[metered] === null ? 0 : need[metered];
  }
}

/** A tenant's name as one token of a subject. */
export function accountToken(tenant: string): string {
  return Buffer.from(tenant).toString("base64url");
}

function full({ limits }: Tenant, nowMs: number): Pick<TenantAccount, "levels" | "atMs"> {
  const capacity = capacities(limits);
  const level = (metered: keyof Amounts) => capacity[metered] ?? 0;
  return {
    atMs: nowMs,
    levels: { requests: level("requests"), input: level("input"), output: level("output"), total: level("total") },
  };
}

/** The need, and up to a share of the bucket for what comes next. */
function leaseOf(levels: Amounts, need: Amounts, { limits }: Tenant): Amounts {
  const capacity = capacities(limits);
  const of = (metered: keyof Amounts): number => {
    const most = capacity[metered];
    if (most === null) return 0;
    const beyond = Math.max(0, Math.min(levels[metered] - need[metered], Math.floor(most * LEASE_SHARE)));
    return need[metered] + beyond;
  };
  return { requests: of("requests"), input: of("input"), output: of("output"), total: of("total") };
}

function refusalOf(waitMs: number, running: number, { concurrency }: Limits): MargayError | null {
  if (waitMs > 0) return new MargayError("rate_limit_exceeded", undefined, { retryAfterMs: waitMs });
  if (concurrency === null || running < concurrency) return null;
  const text = `The tenant may have ${concurrency} requests at once, and they are running. Try again later.`;
  return new MargayError("rate_limit_exceeded", text, { retryAfterMs: 1_000 });
}
