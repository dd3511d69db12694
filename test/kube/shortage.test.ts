import { describe, expect, test } from "vitest";
import type { ModelName } from "#protocol/ids.ts";
import { shortageOf } from "../../control-plane/kube/shortage.ts";
import type { WorkerPod, WorkerPool } from "../../control-plane/kube/worker-pool.ts";

const NANO = "nano" as ModelName;
const pool = (changes: Partial<WorkerPool> = {}): WorkerPool => ({
  ...{ name: "margay-nano-decode", uid: "u", resourceVersion: "1", role: "decode", model: NANO, replicas: 1 },
  ...{ conditions: [], untouched: false },
  ...changes,
});
const pod = (changes: Partial<WorkerPod> = {}): WorkerPod => ({
  ...{
    name: "d-1",
    uid: "u1",
    worker: "d-1",
    rank: 0,
    role: "decode",
    model: NANO,
    stopping: false,
    phase: "Pending",
    message: null,
    restarts: 0,
  },
  ...{ conditions: [], containers: [] },
  ...changes,
});
const unschedulable = {
  ...{ type: "PodScheduled", status: "False", reason: "Unschedulable" },
  message: "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.\nmore",
};
const crashed = (message: string, waiting = "CrashLoopBackOff") => ({
  state: { waiting: { reason: waiting } },
  lastState: { terminated: { exitCode: 1, reason: "Error", message } },
});

describe("why a pool lacks workers", () => {
  test("nothing does while its pods start as pods do", () => {
    expect(shortageOf(pool(), [])).toBeNull();
    const starting = pod({ containers: [{ state: { waiting: { reason: "ContainerCreating" } } }] });
    expect(shortageOf(pool(), [starting, pod({ conditions: [{ type: "PodScheduled", status: "True" }] })])).toBeNull();
  });

  test("a pod without a node: in the scheduler's words, and it may pass", () => {
    expect(shortageOf(pool(), [pod({ conditions: [unschedulable] })])).toEqual({
      reason: "Unschedulable",
      sentence: "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
      mayPass: true,
    });
  });

  test("a program that refuses to start: in its own last words, and it will not pass", () => {
    const said = crashed("loading\ndecode: MARGAY_SLOTS=x: must be a whole number\n");
    expect(
      shortageOf(pool(), [pod({ conditions: [unschedulable] }), pod({ phase: "Running", containers: [said] })]),
    ).toEqual({
      reason: "CrashLoopBackOff",
      sentence: "decode: MARGAY_SLOTS=x: must be a whole number",
      mayPass: false,
    });
  });

  test("a crash without words names the code; one that has been answered by a running process is no lack", () => {
    expect(shortageOf(pool(), [pod({ containers: [crashed("")] })])).toMatchObject({
      sentence: "it ended with code 1 (Error)",
      mayPass: true,
    });
    const back = { ...crashed("it was unwell"), state: { running: {} } };
    expect(shortageOf(pool(), [pod({ phase: "Running", containers: [back] })])).toBeNull();
  });

  test("an image that is not there, a missing secret: the kubelet's words", () => {
    const held = { state: { waiting: { reason: "CreateContainerConfigError", message: 'secret "x" not found' } } };
    expect(shortageOf(pool(), [pod({ containers: [held] })])).toMatchObject({ sentence: 'secret "x" not found' });
  });

  test("pods that are not made at all: the Deployment's condition, unless none is wanted", () => {
    const conditions = [
      { type: "ReplicaFailure", status: "True", reason: "FailedCreate", message: "exceeded quota: gpus" },
    ];
    expect(shortageOf(pool({ conditions }), [])).toMatchObject({
      reason: "FailedCreate",
      sentence: "exceeded quota: gpus",
    });
    expect(shortageOf(pool({ conditions, replicas: 0 }), [])).toBeNull();
  });

  test("pods of other pools and pods that leave do not count", () => {
    const strangers = [
      pod({ role: "prefill", conditions: [unschedulable] }),
      pod({ model: "other" as ModelName, conditions: [unschedulable] }),
      pod({ stopping: true, conditions: [unschedulable] }),
    ];
    expect(shortageOf(pool(), strangers)).toBeNull();
  });
});
