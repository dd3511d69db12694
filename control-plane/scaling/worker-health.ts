import type { RankId } from "#protocol/ids.ts";
import type { FleetSnapshot } from "../fleet/fleet.ts";

/** A rank that does not take requests so long after its start never will. */
export const START_MS = 600_000;
/** A rank that took requests and was not heard for so long is not coming back. */
export const SILENT_MS = 60_000;

/** What is known of one rank's process. Monotonic milliseconds. */
export interface RankHistory {
  readonly startedMs: number;
  /** When the fleet last knew it ready or leaving, or waiting for its group after it once was ready; null: never yet. */
  readonly wellMs: number | null;
}

/** `starting`: not heard of, or loading. */
export type RankHealth = "starting" | "well" | "silent" | "never-ready" | "hung";

/** What the rank tells at `nowMs`, added to what was known. */
export function withSighting(
  history: RankHistory | undefined,
  fleet: FleetSnapshot,
  rankId: RankId,
  nowMs: number,
): RankHistory {
  const known = history ?? { startedMs: nowMs, wellMs: null };
  const state = fleet.ranks.get(rankId)?.state ?? "lost";
  const well = state === "ready" || state === "draining" || (state === "forming" && known.wellMs !== null);
  return well ? { ...known, wellMs: nowMs } : known;
}

/** The last two ask for a replacement. */
export function healthOf(history: RankHistory, nowMs: number): RankHealth {
  const { startedMs, wellMs } = history;
  if (wellMs === null) return nowMs - startedMs > START_MS ? "never-ready" : "starting";
  if (nowMs === wellMs) return "well";
  return nowMs - wellMs > SILENT_MS ? "hung" : "silent";
}
