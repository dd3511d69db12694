import type { ModelName, RankId, WorkerId } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import type { Random } from "#service/clock.ts";
import type { ScaleTarget } from "../scaling/scale-target.ts";
import { between, chance } from "./seeded-random.ts";
import { type SimSite, SimWorker } from "./sim-worker.ts";

/**
 * How a place treats the names of its workers: `fresh` ones for each process, as the process target and Deployments do; the
 * `same` ones again, as StatefulSets and LeaderWorkerSets do, and then with the same address.
 */
export type Naming = "fresh" | "same";

export interface SimTargetParts {
  readonly site: SimSite;
  readonly naming: Naming;
  readonly random: Random;
  readonly drainMs: number;
  readonly onEnd: (rankId: RankId) => void;
  readonly note: (what: () => string) => void;
}

const FIRST_KV_PORT = 41_000;
/** The end of a process is learned at once, that of a host after a while. */
const HOST_SILENCE_MS = [1_000, 40_000] as const;

/**
 * Owns the simulated worker processes.
 *
 *   wanted -> started -> (crashed -> started)* -> asked to stop -> ended
 */
export class SimTarget implements ScaleTarget {
  /** Every process there ever was, the living ones first to last. */
  readonly processes: SimWorker[] = [];
  readonly #parts: SimTargetParts;
  readonly #known = new Map<WorkerId, SimWorker>();
  readonly #wanted = new Map<string, number>();
  #started = 0;
  #closed = false;

  constructor(parts: SimTargetParts) {
    this.#parts = parts;
  }

  /** Processes that have not ended. */
  get living(): readonly SimWorker[] {
    return this.processes.filter(({ ended }) => !ended);
  }

  workers(): readonly SimWorker[] {
    return [...this.#known.values()];
  }

  lastFailure(): null {
    return null;
  }

  wanted(model: ModelName, role: Role): number {
    return this.#wanted.get(`${model}/${role}`) ?? 0;
  }

  hold(): void {}

  replace(workerId: WorkerId): void {
    this.#known.get(workerId)?.crash("process");
  }

  scale(model: ModelName, role: Role, count: number): void {
    if (this.#closed) return;
    this.#wanted.set(`${model}/${role}`, count);
    const live = this.workers().filter((w) => w.model === model && w.role === role && !w.stopping);
    for (const surplus of live.slice(count)) surplus.stop(this.#parts.drainMs);
    for (let missing = count - live.length; missing > 0; missing--) this.#start(model, role);
  }

  async stop(workerId: WorkerId, graceMs: number): Promise<void> {
    this.#known.get(workerId)?.stop(graceMs);
  }

  async close(graceMs: number): Promise<void> {
    this.#closed = true;
    for (const worker of this.#known.values()) worker.stop(graceMs);
  }

  /**
   * The place believes that a worker is gone, and lets another take its place, while it lives on: what is force-deleted on
   * a host that nobody reaches.
   */
  disown(worker: SimWorker): void {
    if (this.#known.get(worker.workerId) !== worker) return;
    this.#known.delete(worker.workerId);
    for (const { rankId } of worker.ranks) this.#parts.onEnd(rankId);
  }

  #start(model: ModelName, role: Role): void {
    const number = ++this.#started;
    const { naming, site, note } = this.#parts;
    let place = number;
    if (naming === "same") for (place = 0; this.#known.has(nameOf(role, place)); place++);
    const workerId = nameOf(role, place);
    const kvPort = role === "prefill" ? 0 : FIRST_KV_PORT + place;
    const process = naming === "same" ? `${workerId}/${number}` : workerId;
    const worker = new SimWorker(site, { workerId, model, role, kvPort }, process, (ended) => this.#onEnd(ended));
    this.#known.set(workerId, worker);
    this.processes.push(worker);
    note(() => `starting ${process}`);
  }

  #onEnd(worker: SimWorker): void {
    const { site, random, note } = this.#parts;
    note(() => `${worker.link.name} ended`);
    const ms = worker.onHost && chance(random, 0.8) ? between(random, ...HOST_SILENCE_MS) : 0;
    site.time.after(ms, () => {
      site.network.forget(worker.link);
      this.disown(worker);
    });
  }
}

function nameOf(role: Role, place: number): WorkerId {
  return `${role}-${place}` as WorkerId;
}
