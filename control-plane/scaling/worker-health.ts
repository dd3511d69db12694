import type { WorkerId } from "#protocol/ids.ts";
import type { FleetSnapshot } from "../fleet/fleet.ts";

/** A worker that does not take requests so long after its start never will. */
export const START_MS = 600_000;
/** A worker that took requests and was not heard for so long is not coming back. */
export const SILENT_MS = 60_000;

/** What is known of one worker process. Monotonic milliseconds. */
export interface WorkerHistory {
  readonly startedMs: number;
  /** When the fleet last knew a rank of it that had finished loading; null: never yet. */
  readonly wellMs: number | null;
}

/** `starting`: not heard of, or loading. */
export type WorkerHealth = "starting" | "well" | "silent" | "never-ready" | "hung";

/** What the worker's ranks tell at `nowMs`, added to what was known. */
export function withSighting(
  history: WorkerHistory | undefined,
  fleet: FleetSnapshot,
  workerId: WorkerId,
  nowMs: number,
): WorkerHistory {
  const known = history ?? { startedMs: nowMs, wellMs: null };
  for (const rank of fleet.ranks.values()) {
    if (rank.workerId === workerId && rank.state !== "lost" && rank.state !== "loading") {
      return { ...known, wellMs: nowMs };
    }
  }
  return known;
}

/** The last two ask for a replacement. */
export function healthOf(history: WorkerHistory, nowMs: number): WorkerHealth {
  const { startedMs, wellMs } = history;
  if (wellMs === null) return nowMs - startedMs > START_MS ? "never-ready" : "starting";
  if (nowMs === wellMs) return "well";
  return nowMs - wellMs > SILENT_MS ? "hung" : "silent";
}
