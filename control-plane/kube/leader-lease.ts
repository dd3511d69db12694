import { z } from "zod";
import type { Clock, Random, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import { isKubeError, type KubeApi } from "./kube-api.ts";
import { microTime } from "./micro-time.ts";

export interface LeaderLeaseParts {
  readonly api: KubeApi;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly namespace: string;
  readonly name: string;
  /** Unique among everybody who may ever hold it. */
  readonly identity: string;
  readonly timing?: LeaseTiming;
  /** Called after each change of `leads`. */
  readonly onChange: (leads: boolean) => void;
}

export interface LeaseTiming {
  /** A holder that did not renew for so long has lost it to whoever comes first. */
  readonly leaseMs: number;
  /** A holder that could not renew for so long stops leading: well before anybody else may begin. */
  readonly renewMs: number;
  readonly retryMs: number;
}

export const LEASE_TIMING: LeaseTiming = { leaseMs: 15_000, renewMs: 10_000, retryMs: 2_000 };

const Lease = z.looseObject({
  metadata: z.looseObject({ name: z.string(), resourceVersion: z.string() }),
  spec: z.looseObject({
    holderIdentity: z.string().nullish(),
    leaseDurationSeconds: z.number().nullish(),
    acquireTime: z.string().nullish(),
    renewTime: z.string().nullish(),
    leaseTransitions: z.number().nullish(),
  }),
});
type Lease = z.output<typeof Lease>;

/**
 * Owns this process's part in the election of a leader, by a Lease of coordination.k8s.io.
 *
 *   follows -> leads -> (renewed)* -> follows | released
 *
 * E1 two never lead at once, however wrong their clocks are: whether another holder is alive is judged by how long *this*
 *    process has seen its lease unchanged, and a write succeeds only on the version that was read
 * E2 a leader that cannot renew stops leading `leaseMs - renewMs` before anybody else may begin
 * E3 `release` gives the lease away, so that a restart costs the others one retry and not a whole lease
 */
export class LeaderLease {
  readonly #parts: LeaderLeaseParts;
  readonly #timing: LeaseTiming;
  #leads = false;
  #holder: string | null = null;
  #renewedMs = 0;
  /** The version of the lease last seen, and since when it has been that. */
  #seen: { readonly version: string; readonly sinceMs: number } | null = null;
  #failing = false;
  #stopped = false;
  #timer: Timer | null = null;
  #watchdog: Timer | null = null;
  #trying: Promise<void> = Promise.resolve();

  constructor(parts: LeaderLeaseParts) {
    this.#parts = parts;
    this.#timing = parts.timing ?? LEASE_TIMING;
  }

  get leads(): boolean {
    return this.#leads;
  }

  /** Who holds the lease as far as is known; null: nobody. */
  get holder(): string | null {
    return this.#holder;
  }

  start(): void {
    // A try may hang as long as a call may; leading must not.
    this.#watchdog = this.#parts.clock.every(this.#timing.retryMs / 2, () => this.#checkRenewal());
    this.#round();
  }

  /** Stops taking part; a lease that is held is given away. Never rejects. */
  async release(): Promise<void> {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#timer?.cancel();
    this.#watchdog?.cancel();
    await this.#trying;
    if (!this.#leads) return;
    this.#setLeads(false, "it is released");
    try {
      const lease = Lease.parse(await this.#parts.api.call({ method: "GET", path: this.#path }));
      if (lease.spec.holderIdentity === this.#parts.identity) await this.#write(lease, "");
    } catch (error) {
      this.#parts.logger.info({ error }, "the leader lease could not be released; it runs out by itself");
    }
  }

  get #path(): string {
    return `${this.#collection}/${this.#parts.name}`;
  }

  get #collection(): string {
    return `/apis/coordination.k8s.io/v1/namespaces/${this.#parts.namespace}/leases`;
  }

  #round(): void {
    const { clock, random } = this.#parts;
    const { retryMs } = this.#timing;
    this.#trying = this.#try().finally(() => {
      if (this.#stopped) return;
      this.#timer = clock.after(retryMs * (1 + 0.2 * random.uniform()), () => this.#round());
    });
  }

  async #try(): Promise<void> {
    const { clock, identity, logger } = this.#parts;
    const beganMs = clock.monotonic();
    try {
      if (await this.#takeOrRenew()) {
        this.#renewedMs = beganMs;
        this.#setLeads(true, "it holds the lease");
      } else this.#setLeads(false, `${this.#holder} holds the lease`);
      if (this.#failing) logger.info({ identity }, "the leader lease can be read and written again");
      this.#failing = false;
    } catch (error) {
      // Another one was faster: no trouble, the next round reads what it wrote.
      const raced = isKubeError(error, 409);
      if (!raced && !this.#failing) logger.warn({ identity, error }, "the leader lease cannot be read or written");
      this.#failing = !raced;
    }
    this.#checkRenewal();
  }

  #checkRenewal(): void {
    if (this.#leads && this.#parts.clock.monotonic() - this.#renewedMs > this.#timing.renewMs) {
      this.#setLeads(false, "the lease could not be renewed");
    }
  }

  /** True when this process holds the lease now. */
  async #takeOrRenew(): Promise<boolean> {
    const { api, clock, identity } = this.#parts;
    const lease = await api.call({ method: "GET", path: this.#path }).then(Lease.parse, (error: unknown) => {
      if (isKubeError(error, 404)) return null;
      throw error;
    });
    if (lease === null) {
      await this.#create();
      this.#holder = identity;
      return true;
    }
    const holder = lease.spec.holderIdentity ?? "";
    this.#holder = holder === "" ? null : holder;
    const version = lease.metadata.resourceVersion;
    if (this.#seen?.version !== version) this.#seen = { version, sinceMs: clock.monotonic() };
    if (holder !== "" && holder !== identity) {
      const theirsMs = (lease.spec.leaseDurationSeconds ?? this.#timing.leaseMs / 1000) * 1000;
      if (clock.monotonic() - this.#seen.sinceMs < theirsMs) return false;
    }
    await this.#write(lease, identity);
    this.#holder = identity;
    return true;
  }

  async #create(): Promise<void> {
    const { api, identity, name } = this.#parts;
    const body = {
      apiVersion: "coordination.k8s.io/v1",
      kind: "Lease",
      metadata: { name },
      spec: { ...this.#spec(identity), acquireTime: this.#now(), leaseTransitions: 0 },
    };
    await api.call({ method: "POST", path: this.#collection, body });
  }

  /** Fails with 409 when the lease has changed since it was read. */
  async #write(lease: Lease, holder: string): Promise<void> {
    const fresh = lease.spec.holderIdentity !== holder;
    const spec = {
      ...lease.spec,
      ...this.#spec(holder),
      ...(fresh ? { acquireTime: this.#now(), leaseTransitions: (lease.spec.leaseTransitions ?? 0) + 1 } : {}),
    };
    await this.#parts.api.call({ method: "PUT", path: this.#path, body: { ...lease, spec } });
  }

  #spec(holderIdentity: string): object {
    const seconds = Math.ceil(this.#timing.leaseMs / 1000);
    // A released lease runs out at once, as client-go writes it.
    return { holderIdentity, leaseDurationSeconds: holderIdentity === "" ? 1 : seconds, renewTime: this.#now() };
  }

  #now(): string {
    return microTime(this.#parts.clock.now());
  }

  #setLeads(leads: boolean, why: string): void {
    if (this.#leads === leads) return;
    this.#leads = leads;
    const { identity, logger, onChange } = this.#parts;
    logger.info({ identity }, leads ? `leads: ${why}` : `does not lead any more: ${why}`);
    onChange(leads);
  }
}
