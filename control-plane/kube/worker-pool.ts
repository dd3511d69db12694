import { z } from "zod";
import { ModelName } from "#protocol/ids.ts";
import { Role } from "#protocol/worker.ts";

/** Label on a pool and its pods: what they do. */
export const ROLE_LABEL = "margay.dev/role";
/** Annotation on a pool and its pods: the name of the one model they serve. A label could not hold every name. */
export const MODEL_ANNOTATION = "margay.dev/model";
/** Label on everything of one Helm release. */
export const RELEASE_LABEL = "app.kubernetes.io/instance";

/** What makes a pool's pods: each of them is a worker, or the pods of a group are the ranks of one. */
export type PoolKind = "Deployment" | "LeaderWorkerSet";
export const POOL_KINDS: Readonly<Record<PoolKind, { readonly apiVersion: string; readonly resource: string }>> = {
  Deployment: { apiVersion: "apps/v1", resource: "deployments" },
  LeaderWorkerSet: { apiVersion: "leaderworkerset.x-k8s.io/v1", resource: "leaderworkersets" },
};
/** Labels of a LeaderWorkerSet's pods: its name, the number of the group, and that of the pod within it. */
const SET_LABEL = "leaderworkerset.sigs.k8s.io/name";
const GROUP_LABEL = "leaderworkerset.sigs.k8s.io/group-index";
const INDEX_LABEL = "leaderworkerset.sigs.k8s.io/worker-index";

/** Where the pools of a kind are. */
export function poolsPath(namespace: string, kind: PoolKind): string {
  const { apiVersion, resource } = POOL_KINDS[kind];
  return `/apis/${apiVersion}/namespaces/${namespace}/${resource}`;
}

/** Selects the pools and pods of one release, and nothing else of it. */
export function workersOf(release: string): string {
  return `${RELEASE_LABEL}=${release},${ROLE_LABEL}`;
}

export const Condition = z.looseObject({
  type: z.string(),
  status: z.string(),
  reason: z.string().nullish(),
  message: z.string().nullish(),
});
export type Condition = z.output<typeof Condition>;

const Meta = z.object({
  name: z.string(),
  uid: z.string(),
  resourceVersion: z.string(),
  generation: z.int().nullish(),
  deletionTimestamp: z.string().nullish(),
  labels: z.object({
    [ROLE_LABEL]: Role,
    [SET_LABEL]: z.string().optional(),
    [GROUP_LABEL]: z.string().regex(/^\d+$/).optional(),
    [INDEX_LABEL]: z.string().regex(/^\d+$/).optional(),
  }),
  annotations: z.object({ [MODEL_ANNOTATION]: ModelName }),
});

/** The Deployment or LeaderWorkerSet that makes the workers of one model and role. */
export const WorkerPool = z
  .object({
    metadata: Meta,
    spec: z.object({ replicas: z.int().min(0).nullish() }),
    status: z.object({ conditions: z.array(Condition).nullish(), readyReplicas: z.int().nullish() }).nullish(),
  })
  .transform(({ metadata, spec, status }) => ({
    name: metadata.name,
    uid: metadata.uid,
    resourceVersion: metadata.resourceVersion,
    role: metadata.labels[ROLE_LABEL],
    model: metadata.annotations[MODEL_ANNOTATION],
    // What the API server takes where nothing is given.
    replicas: spec.replicas ?? 1,
    conditions: status?.conditions ?? [],
    /** As it was made, with the one pod that the API server takes where nobody says a number, and that one not ready. */
    untouched: metadata.generation === 1 && (status?.readyReplicas ?? 0) === 0,
  }));
export type WorkerPool = z.output<typeof WorkerPool>;

const Waiting = z.object({ reason: z.string().nullish(), message: z.string().nullish() });
const ContainerState = z.object({
  waiting: Waiting.nullish(),
  running: z.looseObject({}).nullish(),
  terminated: z.object({ exitCode: z.number(), reason: z.string().nullish(), message: z.string().nullish() }).nullish(),
});
const ContainerStatus = z.object({
  restartCount: z.number().nullish(),
  state: ContainerState.nullish(),
  lastState: ContainerState.nullish(),
});
export type ContainerStatus = z.output<typeof ContainerStatus>;

/** A pod of a pool: a worker under the pod's name, or a rank of the worker `SET-GROUP`. */
export const WorkerPod = z
  .object({
    metadata: Meta,
    status: z
      .object({
        phase: z.string().nullish(),
        reason: z.string().nullish(),
        message: z.string().nullish(),
        conditions: z.array(Condition).nullish(),
        initContainerStatuses: z.array(ContainerStatus).nullish(),
        containerStatuses: z.array(ContainerStatus).nullish(),
      })
      .nullish(),
  })
  .transform(({ metadata, status }) => ({
    name: metadata.name,
    uid: metadata.uid,
    worker: workerOf(metadata),
    rank: Number(metadata.labels[INDEX_LABEL] ?? 0),
    role: metadata.labels[ROLE_LABEL],
    model: metadata.annotations[MODEL_ANNOTATION],
    stopping: metadata.deletionTimestamp != null,
    phase: status?.phase ?? "Pending",
    /** Why it failed as a whole: evicted, say. */
    message: status?.message ?? status?.reason ?? null,
    conditions: status?.conditions ?? [],
    /** How often its containers were started again. */
    restarts: (status?.containerStatuses ?? []).reduce((sum, one) => sum + (one.restartCount ?? 0), 0),
    containers: [...(status?.initContainerStatuses ?? []), ...(status?.containerStatuses ?? [])],
  }));
export type WorkerPod = z.output<typeof WorkerPod>;

function workerOf({ name, labels }: z.output<typeof Meta>): string {
  const { [SET_LABEL]: set, [GROUP_LABEL]: group } = labels;
  return set === undefined || group === undefined ? name : `${set}-${group}`;
}

/** True once the pod's processes have ended for good. */
export function hasEnded(pod: WorkerPod): boolean {
  return pod.phase === "Failed" || pod.phase === "Succeeded";
}
