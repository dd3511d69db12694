import { isoTime, systemClock, systemRandom } from "#service/clock.ts";
import { keyDigest, newApiKey } from "../tenancy/api-key.ts";

/**
 * Makes a key: the key itself goes to stdout and is kept nowhere, what belongs into the keys file to stderr, so that
 * `margay keys create ... > key.txt` keeps the two apart. Returns the exit code.
 */
export function createKey(options: { readonly tenant: string; readonly name: string | null }): number {
  const key = newApiKey(systemRandom);
  const day = isoTime(systemClock.now()).slice(0, 10);
  const name = options.name ?? `${options.tenant}-${day}-${systemRandom.hex(2)}`;
  const line = JSON.stringify({ name, tenant: options.tenant, sha256: keyDigest(key) });
  process.stdout.write(`${key}\n`);
  process.stderr.write(
    `The key above is shown this once. Into "keys" of the file that MARGAY_KEYS_FILE names:\n${line}\n`,
  );
  return 0;
}
