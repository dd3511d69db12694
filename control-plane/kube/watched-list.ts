import { z } from "zod";
import { type BackoffRule, backoffMs } from "#service/backoff.ts";
import type { Clock, Random, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import { isKubeError, type KubeApi, KubeError } from "./kube-api.ts";

export interface WatchedListParts<T> {
  readonly api: KubeApi;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  /** Of the collection: `/api/v1/namespaces/default/pods`. */
  readonly path: string;
  /** Selectors. */
  readonly query?: Readonly<Record<string, string>>;
  /** What is kept of one object, parsed as it arrives. */
  readonly item: z.ZodType<T>;
  readonly onChange: () => void;
  /** Reads the whole list again this often, watch or no watch. */
  readonly resyncMs?: number;
}

const RETRY: BackoffRule = { firstMs: 200, mostMs: 10_000 };
const RESYNC_MS = 300_000;
/** A watch that ended sooner than this did no good: the next one waits. */
const SHORT_MS = 1_000;

const Metadata = z.looseObject({ uid: z.string().min(1), resourceVersion: z.string() });
const Listing = z.object({ metadata: z.object({ resourceVersion: z.string() }), items: z.array(z.unknown()) });
const Event = z.discriminatedUnion("type", [
  z.object({ type: z.enum(["ADDED", "MODIFIED", "DELETED"]), object: z.looseObject({ metadata: Metadata }) }),
  z.object({ type: z.literal("BOOKMARK"), object: z.object({ metadata: z.object({ resourceVersion: z.string() }) }) }),
  z.object({ type: z.literal("ERROR"), object: z.object({ code: z.number(), message: z.string().optional() }) }),
]);

/**
 * Owns a copy of one collection of the API server and keeps it current.
 *
 *   stopped -> listing -> watching -> (ended: watching from the last version | too old: listing | broken: pause)* -> stopped
 *
 * L1 until the first listing has come, and whenever the server is away, `since` says so; what was known is kept
 * L2 a whole listing replaces the copy: what was missed by a watch is made good at the latest at the next resync
 * L3 tries that fail are ever rarer, and one sentence says when they begin to fail and when they are over
 */
export class WatchedList<T> {
  readonly #parts: WatchedListParts<T>;
  readonly #items = new Map<string, T>();
  #abort: AbortController | null = null;
  #awaySinceMs: number;
  #away = true;
  #failure: KubeError | null = null;

  constructor(parts: WatchedListParts<T>) {
    this.#parts = parts;
    this.#awaySinceMs = parts.clock.monotonic();
  }

  /** By uid, in the order in which they came to be known. */
  get items(): ReadonlyMap<string, T> {
    return this.#items;
  }

  /** How long nothing has been heard that could be trusted; null: the copy is current. */
  get awayMs(): number | null {
    return this.#away ? this.#parts.clock.monotonic() - this.#awaySinceMs : null;
  }

  /** Why it is away; null while it is not, or before the first try. */
  get failure(): KubeError | null {
    return this.#failure;
  }

  /** Corrects one object by what the answer to a write of ours said, until a watch tells it too. */
  amend(uid: string, how: (known: T) => T): void {
    const known = this.#items.get(uid);
    if (known !== undefined) this.#items.set(uid, how(known));
  }

  start(): void {
    if (this.#abort !== null) return;
    this.#abort = new AbortController();
    void this.#run(this.#abort.signal);
  }

  stop(): void {
    this.#abort?.abort();
    this.#abort = null;
  }

  async #run(signal: AbortSignal): Promise<void> {
    const { clock, random } = this.#parts;
    let version: string | null = null;
    for (let failed = 0; !signal.aborted; ) {
      const beganMs = clock.monotonic();
      try {
        version ??= await this.#list(signal);
        version = await this.#watch(version, signal);
        failed = clock.monotonic() - beganMs < SHORT_MS ? failed + 1 : 0;
      } catch (error) {
        if (signal.aborted) return;
        version = null;
        if (!isKubeError(error, 410)) this.#lost(error as KubeError);
        failed++;
      }
      if (failed > 0) await clock.sleep(backoffMs(RETRY, failed, random), signal).catch(() => {});
    }
  }

  async #list(signal: AbortSignal): Promise<string> {
    const { api, item, onChange, path, query } = this.#parts;
    const listing = Listing.parse(await api.call({ method: "GET", path, ...(query === undefined ? {} : { query }) }));
    if (signal.aborted) return listing.metadata.resourceVersion;
    this.#items.clear();
    for (const object of listing.items) {
      const { metadata } = z.object({ metadata: Metadata }).parse(object);
      this.#items.set(metadata.uid, item.parse(object));
    }
    this.#found();
    onChange();
    return listing.metadata.resourceVersion;
  }

  /** Follows from `version` on; returns where to go on, or null when the whole list is due again. */
  async #watch(version: string, signal: AbortSignal): Promise<string | null> {
    const { api, clock, path, query, resyncMs = RESYNC_MS } = this.#parts;
    let last: string = version;
    let due = false;
    const round = new AbortController();
    const timer: Timer = clock.after(resyncMs, () => {
      due = true;
      round.abort();
    });
    try {
      const ends = AbortSignal.any([signal, round.signal]);
      const onEvent = (event: unknown): void => {
        last = this.#follow(event);
      };
      await api.watch(path, { ...query, resourceVersion: version }, onEvent, ends);
    } catch (error) {
      if (!due) throw error;
    } finally {
      timer.cancel();
    }
    return due ? null : last;
  }

  #follow(raw: unknown): string {
    const event = Event.parse(raw);
    if (event.type === "ERROR") throw new KubeError(event.object.message ?? "the watch failed", event.object.code);
    const { metadata } = event.object;
    if (event.type === "BOOKMARK") return metadata.resourceVersion;
    const { uid } = Metadata.parse(metadata);
    if (event.type === "DELETED") this.#items.delete(uid);
    else this.#items.set(uid, this.#parts.item.parse(event.object));
    this.#parts.onChange();
    return metadata.resourceVersion;
  }

  #found(): void {
    const { clock, logger, path } = this.#parts;
    if (this.#failure !== null) {
      const awayMs = Math.round(clock.monotonic() - this.#awaySinceMs);
      logger.info({ path, awayMs }, "the API server answers again");
    }
    this.#away = false;
    this.#failure = null;
  }

  #lost(error: KubeError): void {
    const { clock, logger, path, onChange } = this.#parts;
    const news = this.#failure === null;
    if (!this.#away) this.#awaySinceMs = clock.monotonic();
    this.#away = true;
    this.#failure = error;
    if (!news) return;
    logger.warn({ path, error }, "the API server does not answer; what was known of it is kept");
    onChange();
  }
}
