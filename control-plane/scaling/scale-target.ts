import type { ModelName, WorkerId } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";

/** A worker the target runs. */
export interface TargetWorker {
  readonly workerId: WorkerId;
  readonly model: ModelName;
  readonly role: Role;
  readonly stopping: boolean;
}

/** Where workers come from: local processes here, pods elsewhere. */
export interface ScaleTarget {
  /** Brings the number of workers that are not stopping to `count`. Returns at once; starting and stopping take their time. */
  scale(model: ModelName, role: Role, count: number): void;
  workers(): readonly TargetWorker[];
  /** Ends one worker after its requests, at the latest after `graceMs`; it is replaced while its number is wanted. */
  stop(workerId: WorkerId, graceMs: number): Promise<void>;
  /** Why the last worker of a model failed to start; null when none did since one ran well. */
  lastFailure(model: ModelName): string | null;
  /** Ends all workers. */
  close(graceMs: number): Promise<void>;
}
