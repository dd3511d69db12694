import { type ModelName, type RankId, rankIdOf, WorkerId } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import type { Clock, Random, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import { isKubeError, type KubeApi } from "../../kube/kube-api.ts";
import type { PoolKind, WorkerPod } from "../../kube/worker-pool.ts";
import { WorkerPools } from "../../kube/worker-pools.ts";
import type { ScaleTarget, StartFailure, TargetWorker } from "../scale-target.ts";

export interface KubeTargetParts {
  readonly api: KubeApi;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly namespace: string;
  readonly release: string;
  /** Ranks of a worker of each role: one is a pod of a Deployment, several are a group of a LeaderWorkerSet. */
  readonly ranks: Readonly<Record<Role, number>>;
  /** Who reports, in events. */
  readonly instance: string;
  /** Whether this process writes conditions and events. */
  readonly leads: () => boolean;
  /** A rank's pod has ended, however. */
  readonly onEnd: (rankId: RankId) => void;
}

const LOOK_MS = 1_000;

/**
 * Workers as pods: a pool per model and role, whose scale subresource is patched. A worker of one rank is a pod and called as
 * it; the ranks of a larger one are the pods of a group.
 *
 *   created -> started -> closed
 *
 * K1 the cluster makes, restarts and ends the pods; this asks for numbers, and reads why they are not to be had
 * K2 closing ends no pod: the workers belong to the release, not to this process
 */
export class KubeTarget implements ScaleTarget {
  readonly #parts: KubeTargetParts;
  readonly #pools: WorkerPools;
  #timer: Timer | null = null;
  #noting = false;

  constructor(parts: KubeTargetParts) {
    this.#parts = parts;
    const { onEnd, ranks } = parts;
    const kindOf = (role: Role): PoolKind => (ranks[role] === 1 ? "Deployment" : "LeaderWorkerSet");
    this.#pools = new WorkerPools({
      ...parts,
      kinds: { prefill: kindOf("prefill"), decode: kindOf("decode") },
      onPodEnded: ({ worker, rank }) => onEnd(rankIdOf(worker as WorkerId, rank)),
    });
  }

  start(): void {
    this.#pools.start();
    this.#timer = this.#parts.clock.every(LOOK_MS, () => void this.#look());
  }

  wanted(model: ModelName, role: Role): number | null {
    return this.#pools.replicas(model, role);
  }

  scale(model: ModelName, role: Role, count: number): void {
    this.#pools.ask(model, role, count);
  }

  hold(): void {
    this.#pools.forgetAsks();
  }

  workers(): readonly TargetWorker[] {
    const groups = Map.groupBy(this.#pools.pods().filter(isWorker), ({ worker }) => worker);
    return [...groups].map(([worker, pods]) => {
      const [{ model, role }] = pods as [WorkerPod];
      const running = pods.filter(({ phase }) => phase === "Running").sort((a, b) => a.rank - b.rank);
      return {
        ...{ workerId: worker as WorkerId, model, role },
        ranks: running.map(({ rank, uid, restarts }) => ({
          rankId: rankIdOf(worker as WorkerId, rank),
          instance: `${uid} ${restarts}`,
        })),
        stopping: pods.every(({ stopping }) => stopping),
        runs: running.length > 0,
      };
    });
  }

  async stop(workerId: WorkerId, graceMs: number): Promise<void> {
    const pods = this.#pools.pods().filter(({ worker }) => worker === workerId);
    await Promise.all(pods.map((pod) => this.#remove(pod, graceMs)));
  }

  replace(_: WorkerId, rankId: RankId): void {
    const pods = this.#pools.pods().filter(({ worker, rank }) => rankIdOf(worker as WorkerId, rank) === rankId);
    for (const pod of pods) void this.#remove(pod, 0);
  }

  lastFailure(model: ModelName): StartFailure | null {
    for (const role of ["prefill", "decode"] as const) {
      const lack = this.#pools.shortage(model, role);
      if (lack !== null)
        return { sentence: `${role} workers: ${lack.reason}: ${lack.sentence}`, mayPass: lack.mayPass };
    }
    const { failure } = this.#pools;
    return failure === null
      ? null
      : { sentence: `The cluster's API server does not answer: ${failure}`, mayPass: true };
  }

  async close(): Promise<void> {
    this.#timer?.cancel();
    this.#timer = null;
    this.#pools.stop();
  }

  async #remove({ name, worker }: WorkerPod, graceMs: number): Promise<void> {
    try {
      await this.#pools.remove(name, graceMs);
      this.#parts.logger.info({ worker, pod: name }, "stopping a worker");
    } catch (error) {
      // Gone already. Whatever else failed is tried again by whoever still wants it gone.
      if (!isKubeError(error, 404)) this.#parts.logger.warn({ pod: name, error }, "a pod could not be deleted");
    }
  }

  async #look(): Promise<void> {
    const { leads, metrics } = this.#parts;
    metrics.gauge("margay_api_server_away_seconds", {}, (this.#pools.awayMs ?? 0) / 1000);
    metrics.gauge("margay_leader", {}, leads() ? 1 : 0);
    if (!leads() || this.#noting || this.#pools.awayMs !== null) return;
    this.#noting = true;
    try {
      await this.#pools.note();
    } finally {
      this.#noting = false;
    }
  }
}

/** A name that could not be a worker's is some other pod's. */
function isWorker(pod: WorkerPod): boolean {
  return WorkerId.safeParse(pod.worker).success;
}
