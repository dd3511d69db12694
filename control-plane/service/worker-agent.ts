import { z } from "zod";
import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import { asMargayError, MargayError } from "#protocol/errors.ts";
import type { GatewayId, RankId, WorkerId } from "#protocol/ids.ts";
import { type KvChange, type KvEndpoint, KvEvents, KvMissed, KvMissedReply } from "#protocol/kv.ts";
import type { ExchangeEndpoint, LostGroup, Membership } from "#protocol/membership.ts";
import type { ModelCard } from "#protocol/model-card.ts";
import { DrainReply } from "#protocol/prefill.ts";
import { subjects } from "#protocol/subjects.ts";
import {
  Drain,
  GATEWAY_BEAT_MS,
  GatewayBeat,
  Goodbye,
  HEARTBEAT_MS,
  Heartbeat,
  Hello,
  type Load,
  OWNER_TIMEOUT_MS,
  Refused,
  type Role,
  Welcome,
  type WorkerState,
} from "#protocol/worker.ts";
import { type BackoffRule, backoffMs } from "./backoff.ts";
import type { Clock, Random, Timer } from "./clock.ts";
import { KvJournal } from "./kv-journal.ts";
import type { Logger } from "./logger.ts";
import { OwnerWatch } from "./owner-watch.ts";

/** What a rank tells about itself and does not change while it lives. */
export interface RankIdentity {
  readonly workerId: WorkerId;
  readonly rankId: RankId;
  readonly rank: number;
  readonly ranks: number;
  readonly role: Role;
  readonly model: ModelCard;
  /** null for prefill ranks. */
  readonly kvEndpoint: KvEndpoint | null;
  /** null: the only rank of its worker. */
  readonly exchange: ExchangeEndpoint | null;
  /** Real experts of the model. */
  readonly experts: number;
  readonly healthUrl: string;
  readonly pid: number;
}

/** The node behind the agent. */
export interface AgentHost {
  load(): Load;
  /** All hashes of the prefix cache, concatenated. */
  prefixHashes(): Uint8Array;
  /** Somebody asked this rank to end its work by `deadlineMs` (epoch ms) and to exit. May be called again. */
  onDrain(deadlineMs: number): void;
  /** A control plane was silent for OWNER_TIMEOUT_MS: its requests have nobody who waits for them. */
  onOwnerSilent(owner: GatewayId): void;
}

export interface AgentOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly identity: RankIdentity;
  readonly host: AgentHost;
}

const HELLO_TIMEOUT_MS = 2_000;
const HELLO_BACKOFF: BackoffRule = { firstMs: 100, mostMs: 2_000 };
/** One line about a missing welcome per this many tries. */
const HELLO_LOG_EVERY = 10;
/** A rank without anybody to exchange KV with waits so long for one: the other role of a new version may start later. */
const PARTNER_MS = 120_000;
const OWNER_CHECK_MS = 1_000;
const GOODBYE_MS = 1_000;
const WelcomeReply = z.discriminatedUnion("kind", [Welcome, Refused]);

/**
 * Speaks for one rank on the bus. Owns its epoch, heartbeats, KV event numbers and the watch over owners.
 *
 *   silent -> introduced (has an epoch) -> beating (loading | forming | ready | draining) -> left
 *
 * 1 nothing is published before the epoch is known
 * 2 a heartbeat goes out every HEARTBEAT_MS, at once on a change of state and when the bus comes back
 * 3 KV events are numbered without gaps; one lost on the bus shows as a gap, and is told again or made good by a snapshot
 * 4 after `leave` nothing is published any more
 */
export class WorkerAgent {
  readonly #options: AgentOptions;
  readonly #owners: OwnerWatch;
  readonly #subscriptions: Subscription[] = [];
  readonly #timers: Timer[] = [];
  #epoch = 0;
  #state: WorkerState = "loading";
  #membership: Membership | null = null;
  #lostGroup: LostGroup | null = null;
  #beats = 0;
  readonly #journal = new KvJournal();
  #left = false;

  constructor(options: AgentOptions) {
    this.#options = options;
    this.#owners = new OwnerWatch(OWNER_TIMEOUT_MS, 2 * OWNER_CHECK_MS + GATEWAY_BEAT_MS, options.clock.monotonic());
  }

  /**
   * Says hello until a control plane answers with an epoch, for as long as it takes; `signal` ends the wait.
   * Rejects with `incompatible` and one sentence when this rank is refused for good (`incompatible`, `invalid_request`), for
   * example for its clock, or was put off for PARTNER_MS. Every other failure may pass.
   */
  async introduce(signal: AbortSignal): Promise<number> {
    const { clock, random, logger } = this.#options;
    let putOffSinceMs: number | null = null;
    for (let attempt = 1; ; attempt++) {
      const failure = await this.#hello();
      if (failure === null) return this.#epoch;
      const isRefusal = failure.code === "incompatible" || failure.code === "invalid_request";
      if (isRefusal && failure.retryAfterMs !== null) putOffSinceMs ??= clock.monotonic();
      const waitedMs = putOffSinceMs === null ? 0 : clock.monotonic() - putOffSinceMs;
      if (isRefusal && (failure.retryAfterMs === null || waitedMs > PARTNER_MS)) {
        throw new MargayError("incompatible", `The control plane refuses this worker: ${failure.message}`);
      }
      if (attempt % HELLO_LOG_EVERY === 1) logger.info({ error: failure }, "waiting to be welcomed by a control plane");
      await clock.sleep(backoffMs(HELLO_BACKOFF, attempt, random), signal);
    }
  }

  /** Begins to beat in state `loading`. Only after `introduce`. */
  begin(): void {
    const { bus, clock, identity, host } = this.#options;
    const { rankId } = identity;
    this.#subscriptions.push(
      bus.respond(subjects.kvMissed(rankId), KvMissed, KvMissedReply, (missed) => this.#retell(missed)),
      bus.respond(subjects.drain(rankId), Drain, DrainReply, ({ deadlineMs }) => {
        host.onDrain(deadlineMs);
        return { kind: "done" as const };
      }),
      bus.subscribe(subjects.gatewayBeats(), GatewayBeat, ({ gatewayId }) =>
        this.#owners.beat(gatewayId, clock.monotonic()),
      ),
      bus.onState((state) => {
        this.#owners.setHearing(state === "connected", clock.monotonic());
        if (state === "connected") this.#beat();
      }),
    );
    this.#owners.setHearing(bus.state === "connected", clock.monotonic());
    this.#timers.push(
      clock.every(HEARTBEAT_MS, () => this.#beat()),
      clock.every(OWNER_CHECK_MS, () => {
        for (const owner of this.#owners.takeSilent(clock.monotonic())) host.onOwnerSilent(owner);
      }),
    );
    this.#beat();
  }

  get epoch(): number {
    return this.#epoch;
  }

  get state(): WorkerState {
    return this.#state;
  }

  setState(state: WorkerState): void {
    if (this.#state === state) return;
    this.#state = state;
    this.#beat();
  }

  /** One of several ranks is in another group, or in none: only in one it is ready. */
  setMembership(membership: Membership | null, lostGroup: LostGroup | null): void {
    this.#membership = membership;
    this.#lostGroup = lostGroup;
    if (this.#state !== "draining") this.#state = membership === null ? "forming" : "ready";
    this.#beat();
  }

  /** Announces changes of the prefix cache: concatenated hashes, after the change is visible (B6). */
  publishKv({ stored, removed }: KvChange): void {
    if (this.#epoch === 0 || this.#left || stored.length + removed.length === 0) return;
    const { bus, identity } = this.#options;
    const seq = this.#journal.note({ stored, removed });
    bus.publish(subjects.kvEvents(identity.rankId), KvEvents, {
      kind: "kv-events",
      rankId: identity.rankId,
      epoch: this.#epoch,
      seq,
      stored,
      removed,
    });
  }

  /** False once the owner was silent for OWNER_TIMEOUT_MS while the bus was connected. */
  isOwnerAlive(owner: GatewayId): boolean {
    return this.#owners.isAlive(owner, this.#options.clock.monotonic());
  }

  /** Says goodbye and falls silent. Idempotent; never rejects. */
  async leave(): Promise<void> {
    if (this.#left) return;
    this.#left = true;
    for (const timer of this.#timers) timer.cancel();
    for (const subscription of this.#subscriptions) subscription.unsubscribe();
    const { bus, identity } = this.#options;
    if (this.#epoch === 0 || bus.state !== "connected") return;
    const goodbye = { kind: "goodbye", rankId: identity.rankId, epoch: this.#epoch } as const;
    bus.publish(subjects.beat(identity.rankId), Goodbye, goodbye);
    await bus.flush(GOODBYE_MS).catch(() => {});
  }

  /** null: welcomed. */
  async #hello(): Promise<MargayError | null> {
    const { bus, clock, identity } = this.#options;
    const { workerId, rankId, rank, ranks, role, model, experts } = identity;
    const clockMs = clock.now();
    const hello = { kind: "hello", workerId, rankId, rank, ranks, role, model, experts, clockMs } as const;
    try {
      const answer = await bus.request(subjects.hello(), Hello, hello, WelcomeReply, HELLO_TIMEOUT_MS);
      if (answer.kind === "refused") {
        return new MargayError(answer.code, answer.detail, { retryAfterMs: answer.retryAfterMs });
      }
      this.#epoch = answer.epoch;
      this.#owners.beat(answer.gatewayId, clock.monotonic());
      return null;
    } catch (error) {
      return asMargayError(error);
    }
  }

  #retell({ epoch, seq }: KvMissed): KvMissedReply {
    const { host, identity } = this.#options;
    const rank = { rankId: identity.rankId, epoch: this.#epoch };
    const changes = epoch === this.#epoch ? this.#journal.since(seq) : null;
    if (changes !== null) return { kind: "kv-replay", ...rank, seq: seq + 1, changes: [...changes] };
    return { kind: "kv-snapshot", ...rank, seq: this.#journal.seq, hashes: host.prefixHashes() };
  }

  #beat(): void {
    const { bus, clock, identity, host } = this.#options;
    if (this.#epoch === 0 || this.#left || bus.state !== "connected") return;
    bus.publish(subjects.beat(identity.rankId), Heartbeat, {
      kind: "heartbeat",
      ...identity,
      state: this.#state,
      membership: this.#membership,
      lostGroup: this.#lostGroup,
      epoch: this.#epoch,
      clockMs: clock.now(),
      seq: this.#beats++,
      kvSeq: this.#journal.seq,
      load: host.load(),
    });
  }
}
