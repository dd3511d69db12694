import { readFile, stat } from "node:fs/promises";
import type { Clock, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import { keyDigest } from "./api-key.ts";
import { type ApiKey, KeyFileError, type KeySet, parseKeyFile } from "./key-file.ts";

export interface KeyringParts {
  readonly path: string;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly metrics: Metrics;
}

/**
 * How often the file is looked at. Notifications of the file system are not relied on: a mounted Secret is changed by
 * swapping a link two folders up.
 */
const LOOK_MS = 2_000;

/**
 * Owns the keys that hold now.
 *
 *   opened -> (looked at -> replaced | kept)* -> closed
 *
 * K1 a file that cannot be read or understood changes nothing: the keys before it go on to hold, and the log says why
 * K2 listeners hear of a change after it holds
 */
export class Keyring {
  readonly #parts: KeyringParts;
  readonly #listeners = new Set<() => void>();
  #set: KeySet;
  #seen: string;
  #timer: Timer | null = null;
  #looking = false;

  /** Reads the file. Rejects with `KeyFileError`, one sentence per fault. */
  static async open(parts: KeyringParts): Promise<Keyring> {
    const seen = await lookAt(parts.path);
    // What changes from here on is seen by the next look.
    const set = await readKeyFile(parts.path);
    parts.logger.info({ keys: set.keys.size, tenants: set.tenants.size }, "the keys were read");
    return new Keyring(parts, set, seen);
  }

  private constructor(parts: KeyringParts, set: KeySet, seen: string) {
    this.#parts = parts;
    this.#set = set;
    this.#seen = seen;
    parts.metrics.gauge("margay_keys_file_valid", {}, 1);
  }

  start(): void {
    this.#timer ??= this.#parts.clock.every(LOOK_MS, () => void this.look());
  }

  stop(): void {
    this.#timer?.cancel();
    this.#timer = null;
  }

  get current(): KeySet {
    return this.#set;
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** The key a client presents; null where there is none, or its time is over. */
  find(presented: string): ApiKey | null {
    const digest = keyDigest(presented);
    return digest === null ? null : this.holding(digest);
  }

  /** The key of this digest as it holds now. */
  holding(digest: string): ApiKey | null {
    const key = this.#set.keys.get(digest);
    if (key === undefined) return null;
    return key.expiresMs !== null && key.expiresMs <= this.#parts.clock.now() ? null : key;
  }

  /** Reads the file again if it changed. */
  async look(): Promise<void> {
    if (this.#looking) return;
    this.#looking = true;
    const { path, logger, metrics } = this.#parts;
    try {
      const seen = await lookAt(path);
      if (seen === this.#seen) return;
      this.#seen = seen;
      this.#set = await readKeyFile(path);
      logger.info({ keys: this.#set.keys.size, tenants: this.#set.tenants.size }, "the keys were read again");
      metrics.gauge("margay_keys_file_valid", {}, 1);
      metrics.count("margay_keys_file_reloads_total", { outcome: "ok" });
      for (const listener of [...this.#listeners]) listener();
    } catch (error) {
      metrics.gauge("margay_keys_file_valid", {}, 0);
      metrics.count("margay_keys_file_reloads_total", { outcome: "failed" });
      logger.error({ path, reason: (error as Error).message }, "the keys file is not usable; the keys before it hold");
    } finally {
      this.#looking = false;
    }
  }
}

/** Reads and parses a keys file. Rejects with `KeyFileError` that names the file. */
export async function readKeyFile(path: string): Promise<KeySet> {
  try {
    return parseKeyFile(await readFile(path, "utf8"));
  } catch (error) {
    if (error instanceof KeyFileError) throw new KeyFileError(`MARGAY_KEYS_FILE=${path}: ${error.message}`);
    const { code } = error as NodeJS.ErrnoException;
    throw new KeyFileError(`MARGAY_KEYS_FILE=${path}: the file cannot be read (${code ?? "unknown"})`);
  }
}

/** What changes when the file does. */
async function lookAt(path: string): Promise<string> {
  try {
    const { ino, size, mtimeMs } = await stat(path);
    return `${ino} ${size} ${mtimeMs}`;
  } catch {
    return "gone";
  }
}
