import type { ModelName, RankId, WorkerId } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";

/** A process of a worker. */
export interface TargetRank {
  readonly rankId: RankId;
  /** Another one whenever the rank is started anew. */
  readonly instance: string;
}

/** A worker the target runs. */
export interface TargetWorker {
  readonly workerId: WorkerId;
  readonly model: ModelName;
  readonly role: Role;
  /** By number. */
  readonly ranks: readonly TargetRank[];
  readonly stopping: boolean;
  /** Its processes have been started; false while it waits for a place to run. */
  readonly runs: boolean;
}

/** Why workers do not come. */
export interface StartFailure {
  readonly sentence: string;
  /** Room may come without anybody's doing; false: the program itself refuses to start, and will again. */
  readonly mayPass: boolean;
}

/** Where workers come from: local processes here, pods elsewhere. */
export interface ScaleTarget {
  /** The number asked for last, by whoever scaled this target; null while that is not known. */
  wanted(model: ModelName, role: Role): number | null;
  /** Brings the number of workers that are not stopping to `count`. Returns at once; starting and stopping take their time. */
  scale(model: ModelName, role: Role, count: number): void;
  /** Somebody else scales from now on: what was asked for and is not done yet is forgotten. */
  hold(): void;
  workers(): readonly TargetWorker[];
  /** Ends one worker after its requests, at the latest after `graceMs`; it is replaced while its number is wanted. */
  stop(workerId: WorkerId, graceMs: number): Promise<void>;
  /** Ends one rank of a worker at once; another takes its place, or a new worker the worker's, while it is wanted. */
  replace(workerId: WorkerId, rankId: RankId): void;
  /** Why workers of a model do not come; null when nothing keeps them. */
  lastFailure(model: ModelName): StartFailure | null;
  /** Ends what this process runs: workers that are its own, watches. */
  close(graceMs: number): Promise<void>;
}
