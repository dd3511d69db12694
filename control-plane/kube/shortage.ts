import { type Condition, type ContainerStatus, hasEnded, type WorkerPod, type WorkerPool } from "./worker-pool.ts";

/** Why a pool does not have the workers it was asked for. */
export interface Shortage {
  /** One word, as conditions and events have it. */
  readonly reason: string;
  readonly sentence: string;
  /** Room may come without anybody's doing (a node, an image); a program that refuses to start will refuse again. */
  readonly mayPass: boolean;
}

/** Reasons of a waiting container that are part of every start. */
const USUAL = new Set(["ContainerCreating", "PodInitializing"]);

/** The worst of what keeps a pool's pods from running: pure. null: nothing does. */
export function shortageOf(pool: WorkerPool, pods: readonly WorkerPod[]): Shortage | null {
  const mine = pods.filter((pod) => pod.role === pool.role && pod.model === pool.model && !pod.stopping);
  for (const pod of mine) {
    const crash = pod.containers.map(crashOf).find((found) => found !== null);
    if (crash !== undefined && !hasEnded(pod)) return crash;
  }
  for (const pod of mine) {
    const held = notScheduled(pod) ?? pod.containers.map(heldUp).find((found) => found !== null) ?? null;
    if (held !== null) return held;
  }
  if (pool.replicas === 0) return null;
  // Pods that are not even made: a quota, an admission policy, a missing service account.
  const failure = pool.conditions.find(
    (condition) => condition.type === "ReplicaFailure" && condition.status === "True",
  );
  if (failure === undefined) return null;
  return { reason: failure.reason ?? "FailedCreate", sentence: firstLine(failure.message ?? ""), mayPass: true };
}

function notScheduled(pod: WorkerPod): Shortage | null {
  const scheduled = pod.conditions.find((condition: Condition) => condition.type === "PodScheduled");
  if (scheduled === undefined || scheduled.status !== "False") return null;
  return {
    reason: scheduled.reason ?? "Unschedulable",
    sentence: firstLine(scheduled.message ?? "the pod cannot be placed on a node"),
    mayPass: true,
  };
}

/** A container that ended with an error and is held back before its next start. */
function crashOf({ state, lastState }: ContainerStatus): Shortage | null {
  const ended = state?.terminated ?? lastState?.terminated;
  if (state?.running != null || ended == null || ended.exitCode === 0) return null;
  const said = lastLine(ended.message ?? "");
  const reason = state?.waiting?.reason ?? ended.reason ?? "Error";
  const sentence = said === "" ? `it ended with code ${ended.exitCode} (${ended.reason ?? "Error"})` : said;
  return { reason, sentence, mayPass: said === "" };
}

function heldUp({ state }: ContainerStatus): Shortage | null {
  const waiting = state?.waiting;
  if (waiting == null || waiting.reason == null || USUAL.has(waiting.reason)) return null;
  return { reason: waiting.reason, sentence: firstLine(waiting.message ?? waiting.reason), mayPass: true };
}

function firstLine(text: string): string {
  return text.split("\n", 1)[0]!.trim().slice(0, 500);
}

function lastLine(text: string): string {
  return (text.trimEnd().split("\n").at(-1) ?? "").trim().slice(0, 500);
}
