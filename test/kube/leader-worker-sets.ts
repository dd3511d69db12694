import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { load } from "js-yaml";
import { z } from "zod";
import { systemClock, systemRandom } from "#service/clock.ts";
import { silentLogger } from "#service/logger.ts";
import { isKubeError, type KubeApi } from "../../control-plane/kube/kube-api.ts";
import { WatchedList } from "../../control-plane/kube/watched-list.ts";
import { poolsPath } from "../../control-plane/kube/worker-pool.ts";
import { waitFor } from "../support/system.ts";
import { NAMESPACE } from "./manifests.ts";

/** Carries the published definition of the API. */
const MODULE = "sigs.k8s.io/lws@v0.7.0";
const DEFINITION = "config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml";
const DOWNLOAD_MS = 120_000;
const WAIT_MS = 40_000;
const PREFIX = "leaderworkerset.sigs.k8s.io";
const SETS = poolsPath(NAMESPACE, "LeaderWorkerSet");
const PODS = `/api/v1/namespaces/${NAMESPACE}/pods`;

interface Meta {
  readonly name: string;
  readonly uid: string;
  readonly deletionTimestamp?: string;
  readonly labels?: Readonly<Record<string, string>>;
}

interface PodSet {
  readonly metadata: Meta;
  readonly spec: {
    readonly replicas: number;
    readonly leaderWorkerTemplate: {
      readonly size: number;
      readonly workerTemplate: {
        readonly metadata: { readonly labels: object; readonly annotations: object };
        readonly spec: object;
      };
    };
  };
}

interface Pod {
  readonly metadata: Meta;
}

/** The published definition, out of its Go module; a sentence where that is not to be had. */
export function definition(): { readonly path: string } | { readonly lack: string } {
  const fetched = spawnSync("go", ["mod", "download", "-json", MODULE], { encoding: "utf8", timeout: DOWNLOAD_MS });
  if (fetched.status !== 0) return { lack: `the Go module ${MODULE} can't be had here` };
  return { path: join((JSON.parse(fetched.stdout) as { readonly Dir: string }).Dir, DEFINITION) };
}

/**
 * Teaches a cluster LeaderWorkerSets: defines the API, and stands for its controller: makes each group's pods, replaces one
 * that is gone, and takes away those of groups beyond the number.
 */
export class LeaderWorkerSets {
  readonly #api: KubeApi;
  readonly #sets: WatchedList<PodSet>;
  readonly #pods: WatchedList<Pod>;
  #dirty = false;
  #working = false;

  private constructor(api: KubeApi) {
    this.#api = api;
    const common = { api, clock: systemClock, random: systemRandom, logger: silentLogger };
    const onChange = () => void this.#changed();
    this.#sets = new WatchedList({ ...common, path: SETS, item: z.custom<PodSet>(), onChange });
    const query = { labelSelector: `${PREFIX}/name` };
    this.#pods = new WatchedList({ ...common, path: PODS, query, item: z.custom<Pod>(), onChange });
  }

  static async start(api: KubeApi, path: string): Promise<LeaderWorkerSets> {
    const body = load(readFileSync(path, "utf8")) as object;
    await api.call({ method: "POST", path: "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body });
    const served = () => api.call({ method: "GET", path: SETS }).catch(() => null);
    await waitFor("the API of LeaderWorkerSets", served, WAIT_MS);
    const sets = new LeaderWorkerSets(api);
    sets.#sets.start();
    sets.#pods.start();
    return sets;
  }

  stop(): void {
    this.#sets.stop();
    this.#pods.stop();
  }

  /** One round at a time; what changes meanwhile is looked at in the next. */
  async #changed(): Promise<void> {
    this.#dirty = true;
    if (this.#working) return;
    this.#working = true;
    while (this.#dirty) {
      this.#dirty = false;
      if (this.#sets.awayMs !== null || this.#pods.awayMs !== null) continue;
      for (const set of this.#sets.items.values()) await this.#look(set);
    }
    this.#working = false;
  }

  async #look(set: PodSet): Promise<void> {
    const { replicas, leaderWorkerTemplate } = set.spec;
    const mine = [...this.#pods.items.values()].filter(
      ({ metadata }) => metadata.labels?.[`${PREFIX}/name`] === set.metadata.name,
    );
    const names = new Set(mine.map(({ metadata }) => metadata.name));
    for (let group = 0; group < replicas; group++) {
      for (let index = 0; index < leaderWorkerTemplate.size; index++) {
        if (!names.has(nameOf(set, group, index))) await this.#make(set, group, index);
      }
    }
    for (const { metadata } of mine) {
      const beyond = Number(metadata.labels?.[`${PREFIX}/group-index`]) >= replicas;
      if (beyond && metadata.deletionTimestamp === undefined) await this.#remove(metadata.name);
    }
  }

  async #make(set: PodSet, group: number, index: number): Promise<void> {
    const { metadata, spec } = set.spec.leaderWorkerTemplate.workerTemplate;
    const labels = {
      ...metadata.labels,
      [`${PREFIX}/name`]: set.metadata.name,
      [`${PREFIX}/group-index`]: String(group),
      [`${PREFIX}/worker-index`]: String(index),
    };
    const name = nameOf(set, group, index);
    const body = { apiVersion: "v1", kind: "Pod", metadata: { ...metadata, name, labels }, spec };
    await this.#api.call({ method: "POST", path: PODS, body }).catch(unless(409));
  }

  async #remove(name: string): Promise<void> {
    await this.#api.call({ method: "DELETE", path: `${PODS}/${name}`, body: {} }).catch(unless(404));
  }
}

/** As the real controller calls them: the leader as its group, the others after it. */
function nameOf(set: PodSet, group: number, index: number): string {
  return `${set.metadata.name}-${group}${index === 0 ? "" : `-${index}`}`;
}

/** For a change that has been made already. */
function unless(status: number): (error: unknown) => void {
  return (error) => {
    if (!isKubeError(error, status)) throw error;
  };
}
