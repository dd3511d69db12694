import { createHash } from "node:crypto";
import type { Role } from "#protocol/worker.ts";
import type { Clock } from "#service/clock.ts";
import { isKubeError, type KubeApi } from "./kube-api.ts";
import { microTime } from "./micro-time.ts";
import { type Condition, POOL_KINDS, type PoolKind, poolsPath, type WorkerPool } from "./worker-pool.ts";

export interface Note {
  readonly type: "Normal" | "Warning";
  readonly reason: string;
  readonly text: string;
}

/** Longest text of an event. */
const MOST_CHARACTERS = 1024;

/** Writes what people read with `kubectl describe`: events on a pool, and its condition. */
export class WorkloadNotes {
  readonly #api: KubeApi;
  readonly #clock: Clock;
  readonly #namespace: string;
  readonly #instance: string;
  readonly #kinds: Readonly<Record<Role, PoolKind>>;

  constructor(parts: {
    readonly api: KubeApi;
    readonly clock: Clock;
    readonly namespace: string;
    readonly instance: string;
    readonly kinds: Readonly<Record<Role, PoolKind>>;
  }) {
    this.#api = parts.api;
    this.#clock = parts.clock;
    this.#namespace = parts.namespace;
    this.#instance = parts.instance;
    this.#kinds = parts.kinds;
  }

  /** One event; the same one again becomes a higher count of the first. */
  async tell(pool: WorkerPool, note: Note): Promise<void> {
    const path = `/apis/events.k8s.io/v1/namespaces/${this.#namespace}/events`;
    const digest = createHash("sha256").update(`${pool.uid}\0${note.reason}\0${note.text}`).digest("hex");
    const name = `${pool.name.slice(0, 200)}.${digest.slice(0, 16)}`;
    const eventTime = microTime(this.#clock.now());
    const body = {
      apiVersion: "events.k8s.io/v1",
      kind: "Event",
      metadata: { name, namespace: this.#namespace },
      eventTime,
      type: note.type,
      reason: note.reason,
      note: note.text.slice(0, MOST_CHARACTERS),
      action: "Scale",
      regarding: {
        ...{ apiVersion: POOL_KINDS[this.#kinds[pool.role]].apiVersion, kind: this.#kinds[pool.role] },
        ...{ namespace: this.#namespace, name: pool.name, uid: pool.uid },
      },
      reportingController: "margay.dev/control-plane",
      reportingInstance: this.#instance,
    };
    try {
      await this.#api.call({ method: "POST", path, body });
    } catch (error) {
      if (!isKubeError(error, 409)) throw error;
      await this.#repeat(`${path}/${name}`, eventTime);
    }
  }

  async #repeat(path: string, lastObservedTime: string): Promise<void> {
    const known = (await this.#api.call({ method: "GET", path })) as { readonly series?: { readonly count?: number } };
    const series = { count: (known.series?.count ?? 1) + 1, lastObservedTime };
    await this.#api.call({ method: "PATCH", path, body: { series }, bodyType: "application/merge-patch+json" });
  }

  /** Sets one condition of the pool. Fails with 409 when the pool has changed since it was seen. */
  async setCondition(pool: WorkerPool, condition: Condition): Promise<void> {
    const now = microTime(this.#clock.now()).replace(/\.\d+Z$/, "Z");
    const others = pool.conditions.filter((other) => other.type !== condition.type);
    await this.#api.call({
      method: "PATCH",
      path: `${poolsPath(this.#namespace, this.#kinds[pool.role])}/${pool.name}/status`,
      bodyType: "application/merge-patch+json",
      body: {
        metadata: { resourceVersion: pool.resourceVersion },
        status: { conditions: [...others, { ...condition, lastTransitionTime: now, lastUpdateTime: now }] },
      },
    });
  }
}
