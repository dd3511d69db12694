import type { BatchRecord } from "#protocol/batch-entry.ts";
import { asMargayError, MargayError } from "#protocol/errors.ts";
import type { Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { GatewayWatch } from "../gateway-watch.ts";
import { type BatchPlace, placeOf } from "./batch-log.ts";
import { type BatchHost, BatchRun } from "./batch-run.ts";
import { batchState, stateAfter } from "./batch-state.ts";

const LOOK_MS = 2_000;
/** Batches that one process works on at a time, and of one tenant; the others wait for it or for another process. */
const MOST_RUNS = 8;
const MOST_OF_TENANT = 2;
/** One that could not be worked on is let alone for so long. */
const REST_MS = 5_000;

export interface BatchesParts extends BatchHost {
  readonly gateways: GatewayWatch;
  readonly logger: Logger;
  /** Whether the bus can be asked. */
  readonly connected: () => boolean;
}

/**
 * Owns the batches that this process works on, and sees that none is left behind.
 *
 *   kept | left behind by its gateway -> claimed -> running -> ended | left | lost to another gateway
 *
 * B1 A batch is worked on by one process at a time: its log takes a claim only behind the last step.
 * B2 One that this process has to drop has no end in its log: another process goes on with it.
 */
export class Batches {
  readonly #parts: BatchesParts;
  readonly #runs = new Map<string, { readonly run: BatchRun; readonly tenant: string; readonly over: Promise<void> }>();
  readonly #resting = new Map<string, number>();
  /** Marked batches without a log: looked at twice before their mark is taken off, for the log may be on its way. */
  #unlogged: ReadonlySet<string> = new Set();
  #looks: Timer | null = null;
  #looking = false;
  #state: "working" | "leaving" = "working";

  constructor(parts: BatchesParts) {
    this.#parts = parts;
  }

  /** Looks for batches that nobody works on from now on. */
  watch(): void {
    this.#looks = this.#parts.clock.every(LOOK_MS, () => void this.#look());
  }

  /** Keeps a new batch; somebody begins with it soon. */
  async keep(id: string, record: BatchRecord): Promise<void> {
    const { log } = this.#parts;
    const place = placeOf(record.tenant, id);
    await log.mark(place);
    if ((await log.append(place, 0, { kind: "created", record })) === null) throw new MargayError("internal");
    void this.#look();
  }

  /** Begins nothing more; resolves when what is under way is answered and kept. */
  async leave(): Promise<void> {
    this.#state = "leaving";
    this.#looks?.cancel();
    for (const { run } of this.#runs.values()) run.leave();
    await Promise.all([...this.#runs.values()].map(({ over }) => over));
  }

  /** Drops what runs; others go on with it. */
  close(): void {
    this.#state = "leaving";
    this.#looks?.cancel();
    for (const { run } of this.#runs.values()) run.drop(new MargayError("shutting_down"));
  }

  async #look(): Promise<void> {
    const { log, logger, connected } = this.#parts;
    if (this.#looking || this.#state === "leaving" || !connected()) return;
    this.#looking = true;
    try {
      const unlogged = new Set<string>();
      const marked = [...(await log.marked())].sort((a, b) => (a.id < b.id ? -1 : 1));
      for (const place of marked) {
        if (!this.#mayTake(place)) continue;
        if ((await this.#take(place)) === "unlogged") unlogged.add(place.id);
      }
      this.#unlogged = unlogged;
    } catch (error) {
      logger.debug({ error }, "batches left behind could not be looked for");
    } finally {
      this.#looking = false;
    }
  }

  #mayTake({ id, tenant }: BatchPlace): boolean {
    const restsUntilMs = this.#resting.get(id) ?? 0;
    if (this.#runs.has(id) || this.#runs.size >= MOST_RUNS || this.#state === "leaving") return false;
    if (restsUntilMs > this.#parts.clock.monotonic()) return false;
    this.#resting.delete(id);
    return [...this.#runs.values()].filter((one) => one.tenant === tenant).length < MOST_OF_TENANT;
  }

  async #take(place: BatchPlace): Promise<"unlogged" | "taken" | "not ours"> {
    const { log, gateways, logger } = this.#parts;
    const state = batchState(await log.read(place, 0));
    if (state === null && !this.#unlogged.has(place.id)) return "unlogged";
    if (state === null || state.endedAt !== null) {
      await log.unmark(place);
      return "not ours";
    }
    if (state.owner !== null && !gateways.isGone(state.owner)) return "not ours";
    const claim = await log.append(place, state.lastSeq, { kind: "claimed" });
    if (claim === null) return "not ours";
    if (state.owner !== null) logger.info({ batch: place.id, owner: state.owner }, "a batch left behind is taken over");
    const run = new BatchRun(this.#parts, place, stateAfter(state, claim));
    if (this.#state === "leaving") run.leave();
    this.#runs.set(place.id, { run, tenant: place.tenant, over: this.#work(place, run) });
    return "taken";
  }

  /** Ends by itself, whatever happens. */
  async #work({ id }: BatchPlace, run: BatchRun): Promise<void> {
    const { logger, clock } = this.#parts;
    try {
      await run.run();
      logger.info({ batch: id }, "the work on a batch is over");
    } catch (thrown) {
      const error = asMargayError(thrown);
      if (error.code !== "shutting_down") logger.warn({ batch: id, error }, "a batch could not be worked on");
      this.#resting.set(id, clock.monotonic() + REST_MS);
    } finally {
      this.#runs.delete(id);
    }
  }
}
