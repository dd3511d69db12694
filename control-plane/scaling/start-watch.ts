import type { ModelName, RankId } from "#protocol/ids.ts";
import type { RoleOutlook, StartPhase } from "#protocol/scaling.ts";
import type { Role } from "#protocol/worker.ts";
import type { Clock, Timer } from "#service/clock.ts";
import type { Metrics } from "#service/metrics.ts";
import type { FleetSnapshot } from "../fleet/fleet.ts";
import type { ScaleTarget, TargetWorker } from "./scale-target.ts";

export interface StartWatchParts {
  readonly clock: Clock;
  readonly target: ScaleTarget;
  readonly metrics: Metrics;
  readonly snapshot: () => FleetSnapshot;
}

const LOOK_MS = 200;
/** Starts that the usual time is taken from, per model and role. */
const KEPT_STARTS = 9;
/** A start that takes longer than usual is nearly over, but is not. */
const MOST_SHARE = 0.99;

/** A worker that does not take requests yet. */
interface Starting {
  readonly model: ModelName;
  readonly role: Role;
  readonly sinceMs: number;
  readonly phase: StartPhase;
}

/**
 * Owns how long starts of workers take: from the first sight of one to the first request it would take.
 *
 *   created -> started -> stopped
 *
 * T1 a worker that was ready when it was first seen tells nothing of starts
 */
export class StartWatch {
  readonly #parts: StartWatchParts;
  readonly #seen = new Map<string, Starting | "ready">();
  /** By model and role, the latest last. */
  readonly #took = new Map<string, number[]>();
  #timer: Timer | null = null;

  constructor(parts: StartWatchParts) {
    this.#parts = parts;
  }

  start(): void {
    this.#timer ??= this.#parts.clock.every(LOOK_MS, () => this.look());
  }

  stop(): void {
    this.#timer?.cancel();
    this.#timer = null;
  }

  look(): void {
    const nowMs = this.#parts.clock.monotonic();
    const ranks = this.#parts.snapshot().ranks;
    const left = new Set(this.#seen.keys());
    for (const worker of this.#parts.target.workers()) {
      if (worker.stopping) continue;
      const key = worker.workerId;
      left.delete(key);
      const before = this.#seen.get(key);
      const phase = phaseOf(worker, ranks);
      if (phase !== "ready") {
        const sinceMs = before === undefined || before === "ready" ? nowMs : before.sinceMs;
        if (before !== undefined && before !== "ready" && before.phase === "scheduling" && phase !== "scheduling") {
          const labels = { role: worker.role, step: "schedule" } as const;
          this.#parts.metrics.gauge("margay_start_seconds", labels, (nowMs - sinceMs) / 1000);
        }
        this.#seen.set(key, { model: worker.model, role: worker.role, sinceMs, phase });
      } else {
        if (before !== undefined && before !== "ready") this.#note(worker, nowMs - before.sinceMs);
        this.#seen.set(key, "ready");
      }
    }
    for (const key of left) this.#seen.delete(key);
  }

  /** What a start usually takes: the median of the latest; null while none was seen. */
  usualMs(model: ModelName, role: Role): number | null {
    const took = this.#took.get(`${model}/${role}`);
    if (took === undefined) return null;
    return took.toSorted((a, b) => a - b)[took.length >> 1]!;
  }

  outlook(model: ModelName): readonly RoleOutlook[] {
    this.look();
    return (["prefill", "decode"] as const).map((role) => this.#outlookOf(model, role));
  }

  #outlookOf(model: ModelName, role: Role): RoleOutlook {
    const { clock, target } = this.#parts;
    const live = target.workers().filter((one) => one.model === model && one.role === role && !one.stopping);
    const starting = [...this.#seen.values()].filter(
      (one): one is Starting => one !== "ready" && one.model === model && one.role === role,
    );
    const wanted = Math.max(target.wanted(model, role) ?? 0, live.length);
    const ready = Math.max(0, live.length - starting.length);
    const started = live.filter(({ runs }) => runs).length;
    const none = wanted > live.length ? ("scheduling" as const) : ("ready" as const);
    // The one that is furthest is what somebody who waits will get.
    const first = starting.toSorted((a, b) => a.sinceMs - b.sinceMs)[0];
    const usualMs = this.usualMs(model, role);
    if (first === undefined || usualMs === null) {
      return { role, wanted, started, ready, phase: first?.phase ?? none, share: null, leftMs: null };
    }
    const pastMs = clock.monotonic() - first.sinceMs;
    const share = usualMs === 0 ? MOST_SHARE : Math.min(MOST_SHARE, pastMs / usualMs);
    return { role, wanted, started, ready, phase: first.phase, share, leftMs: Math.max(0, usualMs - pastMs) };
  }

  #note({ model, role }: TargetWorker, ms: number): void {
    const key = `${model}/${role}`;
    this.#took.set(key, [...(this.#took.get(key) ?? []), ms].slice(-KEPT_STARTS));
  }
}

function phaseOf(worker: TargetWorker, ranks: ReadonlyMap<RankId, { readonly state: string }>): StartPhase {
  if (!worker.runs) return "scheduling";
  const states = worker.ranks.map(({ rankId }) => ranks.get(rankId)?.state);
  // A rank that drains or fell silent has been ready: the start is over.
  if (states.some((state) => state === "ready" || state === "draining" || state === "lost")) return "ready";
  return states.every((state) => state === undefined) ? "loading" : "joining";
}
