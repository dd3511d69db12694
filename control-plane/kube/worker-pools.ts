import type { ModelName } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import { type BackoffRule, backoffMs } from "#service/backoff.ts";
import type { Clock, Random } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { KubeApi } from "./kube-api.ts";
import { type Shortage, shortageOf } from "./shortage.ts";
import { WatchedList } from "./watched-list.ts";
import { hasEnded, type PoolKind, poolsPath, WorkerPod, WorkerPool, workersOf } from "./worker-pool.ts";
import { WorkloadNotes } from "./workload-notes.ts";

export interface WorkerPoolsParts {
  readonly api: KubeApi;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly namespace: string;
  readonly release: string;
  /** Who reports, in events. */
  readonly instance: string;
  /** What makes the pods of a role; pools of another kind are not looked at. */
  readonly kinds: Readonly<Record<Role, PoolKind>>;
  /** A pod is gone, or all its processes have ended for good. */
  readonly onPodEnded: (pod: WorkerPod) => void;
}

/** What somebody asked of a pool and the API server has not done yet. */
interface Ask {
  readonly replicas: number;
  failed: number;
  notBeforeMs: number;
  sending: boolean;
}

export const CAPACITY_CONDITION = "CapacityAvailable";
const RETRY: BackoffRule = { firstMs: 250, mostMs: 10_000 };
/** Every pod is without a node for a moment: nothing is said of a lack that passes by itself within this time. */
const GRACE_MS = 2_000;
const WRITE_EVERY_MS = 1_000;

/**
 * Owns what is known of a release's worker pools and pods, and what is asked of them.
 *
 *   stopped -> watching (asked: patched until it is so) -> stopped
 *
 * P1 what was known stays known while the API server is away; nothing is asked twice at once of one pool
 * P2 an ask that was not done is forgotten by `forgetAsks`: whoever leads decides anew
 * P3 the number of a pool is this program's alone: who makes the pool gives none, so that making it anew changes none
 */
export class WorkerPools {
  readonly #parts: WorkerPoolsParts;
  readonly #notes: WorkloadNotes;
  readonly #pools: ReadonlyMap<PoolKind, WatchedList<WorkerPool>>;
  readonly #pods: WatchedList<WorkerPod>;
  readonly #asks = new Map<string, Ask>();
  /** Pools that were asked for a number since this process knows them, by uid. */
  readonly #asked = new Set<string>();
  /** Since when a pool lacks something, by uid. */
  readonly #lacking = new Map<string, number>();
  readonly #noted = new Map<string, { readonly text: string; readonly ms: number }>();
  /** By uid. */
  #alive: ReadonlyMap<string, WorkerPod> = new Map();

  constructor(parts: WorkerPoolsParts) {
    const { api, clock, random, logger, namespace, release } = parts;
    this.#parts = parts;
    this.#notes = new WorkloadNotes(parts);
    const query = { labelSelector: workersOf(release) };
    const common = { api, clock, random, logger, query };
    this.#pools = new Map(
      [...new Set(Object.values(parts.kinds))].map((kind) => [
        kind,
        new WatchedList({ ...common, path: poolsPath(namespace, kind), item: WorkerPool, onChange: () => {} }),
      ]),
    );
    this.#pods = new WatchedList({
      ...common,
      path: `/api/v1/namespaces/${namespace}/pods`,
      item: WorkerPod,
      onChange: () => this.#onPods(),
    });
  }

  start(): void {
    for (const list of this.#lists()) list.start();
  }

  stop(): void {
    for (const list of this.#lists()) list.stop();
  }

  /** How long the API server has not been heard; null: it is there. */
  get awayMs(): number | null {
    const away = this.#lists()
      .map((list) => list.awayMs)
      .filter((ms) => ms !== null);
    return away.length === 0 ? null : Math.max(...away);
  }

  /** Why it is not heard. */
  get failure(): string | null {
    return this.#lists().find((list) => list.failure !== null)?.failure?.message ?? null;
  }

  /** Pods that have not ended. */
  pods(): readonly WorkerPod[] {
    return [...this.#pods.items.values()].filter((pod) => !hasEnded(pod));
  }

  pool(model: ModelName, role: Role): WorkerPool | null {
    return this.#all().find((pool) => pool.model === model && pool.role === role) ?? null;
  }

  /** What the pool was asked for last, by whoever; null while that is not known. Nobody asked for a new pool's first pod. */
  replicas(model: ModelName, role: Role): number | null {
    const pool = this.pool(model, role);
    if (pool === null) return null;
    if (pool.untouched && !this.#asked.has(pool.uid)) return 0;
    return this.#asks.get(pool.uid)?.replicas ?? pool.replicas;
  }

  shortage(model: ModelName, role: Role): Shortage | null {
    const pool = this.pool(model, role);
    return pool === null ? null : shortageOf(pool, [...this.#pods.items.values()]);
  }

  /** Asks for a number of pods. To be called again and again: what could not be done is tried again. */
  ask(model: ModelName, role: Role, replicas: number): void {
    const pool = this.pool(model, role);
    if (pool === null) return;
    this.#asked.add(pool.uid);
    const known = this.#asks.get(pool.uid);
    if (known === undefined ? pool.replicas === replicas : known.sending) return;
    const ask = known?.replicas === replicas ? known : { replicas, failed: 0, notBeforeMs: 0, sending: false };
    this.#asks.set(pool.uid, ask);
    if (this.#parts.clock.monotonic() >= ask.notBeforeMs) void this.#send(pool, ask);
  }

  forgetAsks(): void {
    this.#asks.clear();
  }

  /** Deletes a pod; its processes get `graceMs`. */
  async remove(name: string, graceMs: number): Promise<void> {
    const { api, namespace } = this.#parts;
    const path = `/api/v1/namespaces/${namespace}/pods/${name}`;
    await api.call({ method: "DELETE", path, body: { gracePeriodSeconds: Math.ceil(graceMs / 1000) } });
  }

  /** Writes the condition of each pool where it does not say what is true, and an event for each new lack. */
  async note(): Promise<void> {
    for (const pool of this.#all()) {
      const lack = this.#lasting(pool);
      const text = lack === null ? "" : `${lack.reason}: ${lack.sentence}`;
      const known = pool.conditions.find((condition) => condition.type === CAPACITY_CONDITION);
      if (
        known === undefined
          ? lack === null
          : (known.status === "True" ? "" : `${known.reason}: ${known.message}`) === text
      )
        continue;
      const nowMs = this.#parts.clock.monotonic();
      const written = this.#noted.get(pool.uid);
      if (written !== undefined && nowMs - written.ms < WRITE_EVERY_MS) continue;
      this.#noted.set(pool.uid, { text, ms: nowMs });
      try {
        await this.#write(pool, lack);
      } catch (error) {
        this.#parts.logger.info({ pool: pool.name, error }, "the pool's condition could not be written");
      }
    }
  }

  async #write(pool: WorkerPool, lack: Shortage | null): Promise<void> {
    const sentence = lack === null ? "the pods of this pool can run" : lack.sentence;
    await this.#notes.setCondition(pool, {
      type: CAPACITY_CONDITION,
      status: lack === null ? "True" : "False",
      reason: lack?.reason ?? "Available",
      message: sentence,
    });
    const reason = lack === null ? "CapacityAvailable" : "CapacityMissing";
    const text = lack === null ? sentence : `${lack.reason}: ${lack.sentence}`;
    await this.#notes.tell(pool, { type: lack === null ? "Normal" : "Warning", reason, text });
  }

  #lasting(pool: WorkerPool): Shortage | null {
    const lack = shortageOf(pool, [...this.#pods.items.values()]);
    if (lack === null) {
      this.#lacking.delete(pool.uid);
      return null;
    }
    const nowMs = this.#parts.clock.monotonic();
    const sinceMs = this.#lacking.get(pool.uid) ?? nowMs;
    this.#lacking.set(pool.uid, sinceMs);
    return nowMs - sinceMs < GRACE_MS ? null : lack;
  }

  async #send(pool: WorkerPool, ask: Ask): Promise<void> {
    const { api, clock, logger, namespace, random } = this.#parts;
    ask.sending = true;
    try {
      await api.call({
        method: "PATCH",
        path: `${poolsPath(namespace, this.#parts.kinds[pool.role])}/${pool.name}/scale`,
        bodyType: "application/merge-patch+json",
        body: { spec: { replicas: ask.replicas } },
      });
      logger.info({ pool: pool.name, from: pool.replicas, to: ask.replicas }, "scaled a pool");
      this.#listOf(pool.role).amend(pool.uid, (known) => ({ ...known, replicas: ask.replicas }));
      if (this.#asks.get(pool.uid) === ask) this.#asks.delete(pool.uid);
    } catch (error) {
      ask.failed++;
      ask.notBeforeMs = clock.monotonic() + backoffMs(RETRY, ask.failed, random);
      if (ask.failed === 1) logger.warn({ pool: pool.name, to: ask.replicas, error }, "a pool could not be scaled");
    } finally {
      ask.sending = false;
    }
  }

  #listOf(role: Role): WatchedList<WorkerPool> {
    return this.#pools.get(this.#parts.kinds[role])!;
  }

  #lists(): readonly (WatchedList<WorkerPool> | WatchedList<WorkerPod>)[] {
    return [...this.#pools.values(), this.#pods];
  }

  #all(): readonly WorkerPool[] {
    const { kinds } = this.#parts;
    return [...this.#pools].flatMap(([kind, list]) =>
      [...list.items.values()].filter(({ role }) => kinds[role] === kind),
    );
  }

  #onPods(): void {
    const alive = new Map(this.pods().map((pod) => [pod.uid, pod]));
    const before = this.#alive;
    this.#alive = alive;
    for (const [uid, pod] of before) if (!alive.has(uid)) this.#parts.onPodEnded(pod);
  }
}
