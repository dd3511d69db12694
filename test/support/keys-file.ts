import { mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Bus } from "#protocol/bus/bus.ts";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import { GatewayId } from "#protocol/ids.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { silentLogger } from "#service/logger.ts";
import { createMetrics } from "#service/metrics.ts";
import { keyDigest, newApiKey } from "../../control-plane/tenancy/api-key.ts";
import { Keyring, type KeyringParts } from "../../control-plane/tenancy/keyring.ts";
import { Ledger } from "../../control-plane/tenancy/ledger.ts";
import { Limiter } from "../../control-plane/tenancy/limiter.ts";
import { KeyedTenancy } from "../../control-plane/tenancy/tenancy.ts";

/** A key and its line in a keys file. */
export function keyFor(tenant: string, fields: object = {}): { readonly key: string; readonly line: object } {
  const key = newApiKey(systemRandom);
  return { key, line: { name: `${tenant}-${key.slice(-6)}`, tenant, sha256: keyDigest(key), ...fields } };
}

/** A keys file in a folder that goes with it. */
export class KeysFile implements AsyncDisposable {
  readonly path: string;
  readonly #folder: string;

  private constructor(folder: string) {
    this.#folder = folder;
    this.path = join(folder, "keys.json");
  }

  static async with(content: unknown): Promise<KeysFile> {
    const file = new KeysFile(await mkdtemp(join(tmpdir(), "margay-keys-")));
    await file.write(content);
    return file;
  }

  /** Aside, then renamed, as an editor and a mounted Secret do. */
  async write(content: unknown): Promise<void> {
    const text = typeof content === "string" ? content : JSON.stringify(content);
    await writeFile(`${this.path}.new`, text);
    await rename(`${this.path}.new`, this.path);
  }

  open(parts: Partial<KeyringParts> = {}): Promise<Keyring> {
    const metrics = createMetrics({ processMetrics: false });
    return Keyring.open({ path: this.path, clock: systemClock, logger: silentLogger, metrics, ...parts });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.#folder, { recursive: true, force: true });
  }
}

/** Tenants of a keys file over a bus of their own, as one control plane of a system has them. */
export async function tenancyOf(
  file: KeysFile,
  parts: Partial<KeyringParts> & { readonly bus?: Bus; readonly gatewayId?: string; readonly keyring?: Keyring } = {},
): Promise<KeyedTenancy> {
  const clock = parts.clock ?? systemClock;
  const bus = parts.bus ?? new MemoryNetwork(clock, systemRandom).connect("control-plane");
  const metrics = parts.metrics ?? createMetrics({ processMetrics: false });
  return new KeyedTenancy({
    ...{ clock, metrics, keyring: parts.keyring ?? (await file.open(parts)) },
    limiter: new Limiter({ bus, clock, random: systemRandom, gatewayId: GatewayId.parse(parts.gatewayId ?? "gw-1") }),
    ledger: new Ledger({ bus, clock, logger: silentLogger, metrics }),
  });
}
