import type { Clock } from "#service/clock.ts";
import type { LoadRequest } from "./load-request.ts";
import { type LoadTarget, type Observation, streamOne } from "./stream-one.ts";

export interface LoadRun {
  readonly target: LoadTarget;
  readonly requests: readonly LoadRequest[];
  /** Most requests under way at a time; those with a time of their own come late when it is reached, and are told so. */
  readonly clients: number;
  /** Longest life of one request. */
  readonly requestMs: number;
  readonly clock: Clock;
  /** Called after each answer. */
  readonly onProgress: (done: number, failed: number, running: number) => void;
}

export interface LoadOutcome {
  readonly observations: readonly Observation[];
  readonly seconds: number;
  /** How late the latest request with a time of its own was sent: the load was less than asked for where this is much. */
  readonly latestMs: number;
}

/** Sends every request at its time, or when a client is free, and waits for all answers. */
export async function runLoad({
  target,
  requests,
  clients,
  requestMs,
  clock,
  onProgress,
}: LoadRun): Promise<LoadOutcome> {
  const startMs = clock.monotonic();
  const observations: Observation[] = [];
  let next = 0;
  let running = 0;
  let failed = 0;
  let latestMs = 0;
  const client = async (): Promise<void> => {
    for (let request = requests[next++]; request !== undefined; request = requests[next++]) {
      if (request.atMs !== null) {
        const waitMs = request.atMs - (clock.monotonic() - startMs);
        if (waitMs > 0) await clock.sleep(waitMs);
        else latestMs = Math.max(latestMs, -waitMs);
      }
      running++;
      const patience = new AbortController();
      const timer = clock.after(requestMs, () => patience.abort(new Error(`no end within ${requestMs / 1000} s`)));
      const observation = await streamOne(target, request, clock, startMs, patience.signal);
      timer.cancel();
      running--;
      observations.push(observation);
      if (observation.error !== null) failed++;
      onProgress(observations.length, failed, running);
    }
  };
  await Promise.all(Array.from({ length: Math.min(clients, requests.length) }, client));
  return { observations, seconds: (clock.monotonic() - startMs) / 1000, latestMs };
}
