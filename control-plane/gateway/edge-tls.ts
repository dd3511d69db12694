import { X509Certificate } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import type { Server, ServerOptions } from "node:https";
import { createSecureContext } from "node:tls";
import type { Clock, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";

/** Files of the gateway's TLS, PEM. */
export interface EdgeTlsFiles {
  /** Its certificate, and those between it and the authority. */
  readonly certificate: string;
  readonly key: string;
  /** Authorities whose certificates clients must show; null: clients need none. */
  readonly clientAuthority: string | null;
}

interface Material {
  readonly cert: Buffer;
  readonly key: Buffer;
  readonly ca?: Buffer;
}

/** How often the files are looked at: a mounted Secret is changed by swapping a link two folders up. */
const LOOK_MS = 5_000;
/** A client that does not finish its handshake by then is cut off. */
const HANDSHAKE_MS = 10_000;

/**
 * Owns the certificate that the gateway shows.
 *
 *   opened -> (looked at -> replaced | kept)* -> closed
 *
 * E1 files that cannot be read, or do not fit together, change nothing: the ones before them go on to hold, and the log says why
 * E2 connections that are open keep what they began with
 */
export class EdgeTls {
  readonly #files: EdgeTlsFiles;
  readonly #clock: Clock;
  readonly #logger: Logger;
  #material: Material;
  #seen: string;
  #server: Server | null = null;
  #timer: Timer | null = null;
  #looking = false;

  /** Reads the files. Rejects with one sentence that names the setting at fault. */
  static async open(files: EdgeTlsFiles, clock: Clock, logger: Logger): Promise<EdgeTls> {
    const seen = await lookAt(files);
    const material = await read(files);
    const tls = new EdgeTls(files, clock, logger, material, seen);
    tls.#tell("the gateway's certificate was read");
    return tls;
  }

  private constructor(files: EdgeTlsFiles, clock: Clock, logger: Logger, material: Material, seen: string) {
    this.#files = files;
    this.#clock = clock;
    this.#logger = logger;
    this.#material = material;
    this.#seen = seen;
  }

  /** Clients have to show a certificate. */
  get asksClients(): boolean {
    return this.#files.clientAuthority !== null;
  }

  /** Who shows no certificate, or one that does not hold, is answered by the open routes alone (auth.ts). */
  get options(): ServerOptions {
    return {
      ...this.#material,
      requestCert: this.asksClients,
      rejectUnauthorized: false,
      minVersion: "TLSv1.2",
      handshakeTimeout: HANDSHAKE_MS,
    };
  }

  /** From now on `server` shows what the files hold. */
  watch(server: Server): void {
    this.#server = server;
    this.#timer ??= this.#clock.every(LOOK_MS, () => void this.look());
  }

  close(): void {
    this.#timer?.cancel();
    this.#timer = null;
  }

  /** Reads the files again if one changed. */
  async look(): Promise<void> {
    if (this.#looking) return;
    this.#looking = true;
    try {
      const seen = await lookAt(this.#files);
      if (seen === this.#seen) return;
      this.#material = await read(this.#files);
      this.#seen = seen;
      this.#server?.setSecureContext({ ...this.#material, minVersion: "TLSv1.2" });
      this.#tell("the gateway's certificate was read again");
    } catch (error) {
      this.#logger.error(
        { reason: (error as Error).message },
        "the gateway's certificate cannot be replaced; the one before it holds",
      );
    } finally {
      this.#looking = false;
    }
  }

  #tell(what: string): void {
    const { validTo } = new X509Certificate(this.#material.cert);
    const expired = Date.parse(validTo) <= this.#clock.now();
    if (expired) this.#logger.error({ validTo }, `${what}, and its time is over`);
    else this.#logger.info({ validTo }, what);
  }
}

async function read({ certificate, key, clientAuthority }: EdgeTlsFiles): Promise<Material> {
  const material: Material = {
    cert: await readPem("MARGAY_TLS_CERT_FILE", certificate),
    key: await readPem("MARGAY_TLS_KEY_FILE", key),
    ...(clientAuthority === null ? {} : { ca: await readPem("MARGAY_TLS_CLIENT_CA_FILE", clientAuthority) }),
  };
  let holds: boolean;
  try {
    createSecureContext({ ...material, minVersion: "TLSv1.2" });
    if (material.ca !== undefined) new X509Certificate(material.ca);
    holds = true;
  } catch {
    holds = false;
  }
  if (holds) return material;
  const names = `MARGAY_TLS_CERT_FILE=${certificate}, MARGAY_TLS_KEY_FILE=${key}`;
  const authority = clientAuthority === null ? "" : `, MARGAY_TLS_CLIENT_CA_FILE=${clientAuthority}`;
  throw new Error(`${names}${authority}: they are no certificates in PEM with the key of the first`);
}

async function readPem(setting: string, path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    throw new Error(
      `${setting}=${path}: the file cannot be read (${(error as NodeJS.ErrnoException).code ?? "unknown"})`,
    );
  }
}

/** What changes when one of the files does. */
async function lookAt({ certificate, key, clientAuthority }: EdgeTlsFiles): Promise<string> {
  const seen = await Promise.all(
    [certificate, key, clientAuthority].map(async (path) => {
      const found = path === null ? null : await stat(path).catch(() => null);
      return found === null ? "none" : `${found.ino} ${found.size} ${found.mtimeMs}`;
    }),
  );
  return seen.join(", ");
}
