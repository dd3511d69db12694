import { type ChildProcess, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { type ModelName, type RankId, rankIdOf, type WorkerId } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import { backoffMs } from "#service/backoff.ts";
import type { Clock, Random, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import type { ScaleTarget, StartFailure, TargetRank, TargetWorker } from "../scale-target.ts";

export interface ProcessTargetParts {
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly metrics: Metrics;
  /** Checkpoint folder of each model. */
  readonly folders: ReadonlyMap<ModelName, string>;
  /** What every worker inherits. */
  readonly environment: Readonly<Record<string, string>>;
  /** What a role's workers get besides: the password of their NATS user. */
  readonly roleEnvironment: Readonly<Record<Role, Readonly<Record<string, string>>>>;
  /** Time a stopped worker gets for its requests. */
  readonly drainMs: number;
  /** The program of each role; see WORKER_PROGRAMS. */
  readonly programs: Readonly<Record<Role, string>>;
  /** Ranks of one worker of each role. */
  readonly ranks: Readonly<Record<Role, number>>;
  /** A rank's process has ended, however. */
  readonly onEnd: (rankId: RankId) => void;
}

interface RankProcess extends TargetRank {
  readonly rank: number;
  instance: string;
  /** null: it ended, and is started anew when `restart` fires. */
  child: ChildProcess | null;
  restart: Timer | null;
}

interface Worker extends TargetWorker {
  readonly ranks: readonly RankProcess[];
  /** All of its processes have ended. */
  readonly ended: PromiseWithResolvers<void>;
  stopping: boolean;
  sentence: string | null;
}

/** Workers of one model and role that fail again and again are started ever more rarely. */
const RESTART = { firstMs: 250, mostMs: 30_000 };
/** A worker that ran so long counts as having been well. */
const WELL_MS = 30_000;
/** After the drain time, before it is killed. */
const KILL_SLACK_MS = 3_000;

const FailedToStart = z.object({ kind: z.literal("failed-to-start"), sentence: z.string() });

export const WORKER_PROGRAMS: Readonly<Record<Role, string>> = {
  prefill: fileURLToPath(new URL("../../../prefill-node/main.ts", import.meta.url)),
  decode: fileURLToPath(new URL("../../../decode-node/main.ts", import.meta.url)),
};

/**
 * Owns the local worker processes: one per rank.
 *
 *   wanted -> spawned -> (crashed -> pause -> spawned)* -> asked to stop -> ended
 *
 * L1 a process has an IPC channel: when this process dies, however, it drains and ends
 * L2 only processes started here are ever signalled, by pid
 * L3 a crash is said, counted and answered by a new worker after a growing pause, while one is wanted
 * L4 a rank that ends while others of its worker live is started again in its place; with the last one the worker is gone
 */
export class ProcessTarget implements ScaleTarget {
  readonly #parts: ProcessTargetParts;
  readonly #workers = new Map<WorkerId, Worker>();
  /** Per model and role: crashes in a row, and when the next start is allowed (monotonic). */
  readonly #crashes = new Map<string, { count: number; notBeforeMs: number }>();
  /** Per model and role: why the last start failed, until a worker ran well. */
  readonly #failures = new Map<string, string>();
  readonly #wanted = new Map<string, number>();
  #started = 0;
  #closed = false;

  constructor(parts: ProcessTargetParts) {
    this.#parts = parts;
  }

  workers(): readonly TargetWorker[] {
    return [...this.#workers.values()];
  }

  lastFailure(model: ModelName): StartFailure | null {
    const sentence = this.#failures.get(`${model}/prefill`) ?? this.#failures.get(`${model}/decode`);
    return sentence === undefined ? null : { sentence, mayPass: false };
  }

  wanted(model: ModelName, role: Role): number {
    return this.#wanted.get(`${model}/${role}`) ?? 0;
  }

  hold(): void {}

  scale(model: ModelName, role: Role, count: number): void {
    if (this.#closed) return;
    this.#wanted.set(`${model}/${role}`, count);
    const live = [...this.#workers.values()].filter((w) => w.model === model && w.role === role && !w.stopping);
    for (const surplus of live.slice(count)) void this.stop(surplus.workerId, this.#parts.drainMs);
    const pauseUntilMs = this.#crashes.get(`${model}/${role}`)?.notBeforeMs ?? 0;
    if (pauseUntilMs > this.#parts.clock.monotonic()) return;
    for (let missing = count - live.length; missing > 0; missing--) this.#start(model, role);
  }

  async stop(workerId: WorkerId, graceMs: number): Promise<void> {
    const worker = this.#workers.get(workerId);
    if (worker === undefined) return;
    if (!worker.stopping) {
      worker.stopping = true;
      this.#parts.logger.info({ worker: workerId }, "stopping a worker");
      for (const { child, restart } of worker.ranks) {
        restart?.cancel();
        child?.kill("SIGTERM");
      }
    }
    const timer = this.#parts.clock.after(graceMs + KILL_SLACK_MS, () => {
      this.#parts.logger.warn({ worker: workerId }, "a worker did not end in time; killing it");
      for (const { child } of worker.ranks) child?.kill("SIGKILL");
    });
    await worker.ended.promise;
    timer.cancel();
  }

  replace(workerId: WorkerId, rankId: RankId): void {
    const worker = this.#workers.get(workerId);
    if (worker?.ranks.length === 1) void this.stop(workerId, 0);
    else worker?.ranks.find((rank) => rank.rankId === rankId)?.child?.kill("SIGKILL");
  }

  async close(graceMs: number): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#workers.keys()].map((workerId) => this.stop(workerId, graceMs)));
  }

  #start(model: ModelName, role: Role): void {
    const workerId = `${role}-${++this.#started}-${this.#parts.random.hex(3)}` as WorkerId;
    const ranks = Array.from({ length: this.#parts.ranks[role] }, (_, rank) => ({
      ...{ rank, rankId: rankIdOf(workerId, rank), instance: "" },
      ...{ child: null, restart: null },
    }));
    const ended = Promise.withResolvers<void>();
    const worker: Worker = { workerId, model, role, ranks, ended, stopping: false, runs: true, sentence: null };
    this.#workers.set(workerId, worker);
    for (const rank of ranks) this.#spawn(worker, rank);
  }

  #spawn(worker: Worker, rank: RankProcess): void {
    const { clock, logger, folders, environment, roleEnvironment, programs } = this.#parts;
    const { workerId, model, role } = worker;
    const child = spawn(process.execPath, [programs[role]], {
      env: {
        ...environment,
        ...roleEnvironment[role],
        MARGAY_WORKER_ID: workerId,
        MARGAY_RANK: String(rank.rank),
        MARGAY_RANKS: String(worker.ranks.length),
        MARGAY_MODEL: folders.get(model),
        MARGAY_MODEL_NAME: model,
      },
      // Its own process group: Ctrl-C reaches the supervisor alone, and workers end after their requests.
      detached: true,
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    });
    const startedMs = clock.monotonic();
    const well = clock.after(WELL_MS, () => this.#failures.delete(`${model}/${role}`));
    rank.child = child;
    rank.restart = null;
    rank.instance = `${child.pid ?? 0}`;
    logger.info({ worker: workerId, rank: rank.rank, model, pid: child.pid }, "starting a worker");
    child.on("message", (message) => {
      const failed = FailedToStart.safeParse(message);
      if (failed.success) worker.sentence = failed.data.sentence;
    });
    const onEnd = (how: string): void => {
      if (rank.child !== child) return;
      rank.child = null;
      well.cancel();
      this.#parts.onEnd(rank.rankId);
      this.#onEnd(worker, rank, how, clock.monotonic() - startedMs);
    };
    child.once("error", (error) => onEnd(`could not be started: ${error.message}`));
    child.once("exit", (code, signal) => onEnd(signal === null ? `ended with code ${code}` : `was ended by ${signal}`));
  }

  #onEnd(worker: Worker, rank: RankProcess, how: string, ranMs: number): void {
    const { clock, logger } = this.#parts;
    const last = worker.ranks.every(({ child }) => child === null);
    if (last) {
      this.#workers.delete(worker.workerId);
      for (const { restart } of worker.ranks) restart?.cancel();
      worker.ended.resolve();
    }
    if (worker.stopping) {
      logger.info({ worker: worker.workerId, rank: rank.rank }, `a stopped worker ${how}`);
      return;
    }
    const pauseMs = this.#onCrash(worker, rank, how, ranMs);
    if (!last) rank.restart = clock.after(pauseMs, () => this.#spawn(worker, rank));
  }

  /** Returns how long to wait with the next start. */
  #onCrash(worker: Worker, rank: RankProcess, how: string, ranMs: number): number {
    const { clock, random, logger, metrics } = this.#parts;
    const key = `${worker.model}/${worker.role}`;
    const count = ranMs > WELL_MS ? 1 : (this.#crashes.get(key)?.count ?? 0) + 1;
    // The first crash after a healthy life is answered at once: somebody's stream waits for it.
    const pauseMs = worker.sentence === null && count === 1 ? 0 : backoffMs(RESTART, count, random);
    this.#crashes.set(key, { count, notBeforeMs: clock.monotonic() + pauseMs });
    if (worker.sentence !== null) this.#failures.set(key, `${worker.role} worker: ${worker.sentence}`);
    metrics.count("margay_worker_restarts_total", { role: worker.role });
    logger.error(
      { worker: worker.workerId, rank: rank.rank, reason: worker.sentence, pauseMs: Math.round(pauseMs) },
      `a worker ${how}; starting another`,
    );
    return pauseMs;
  }
}
