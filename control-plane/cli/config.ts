import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { natsAccess } from "#service/nats-access.ts";
import { readSettings } from "#service/settings.ts";

/** Folder of the checkout or installed package. */
export const installFolder = fileURLToPath(new URL("../..", import.meta.url));

/** What the command line reads of the environment. Throws `SettingsError` for any bad or unknown `MARGAY_*` variable. */
export function cliConfig() {
  const settings = readSettings(process.env, [
    "MARGAY_STATE_DIR",
    "MARGAY_HOST",
    "MARGAY_PORT",
    "MARGAY_NATS_URL",
    "MARGAY_NATS_CA_FILE",
    "MARGAY_NATS_CERT_FILE",
    "MARGAY_NATS_KEY_FILE",
    "MARGAY_DRAIN_SECONDS",
    "MARGAY_API_KEY",
  ]);
  const stateFolder = resolve(installFolder, settings.MARGAY_STATE_DIR);
  return {
    stateFolder,
    host: settings.MARGAY_HOST,
    port: settings.MARGAY_PORT,
    natsUrl: settings.MARGAY_NATS_URL,
    natsTls: natsAccess({ ...settings, MARGAY_NATS_USER: null, MARGAY_NATS_PASSWORD: null }, "").tls,
    /** null: none is presented. */
    apiKey: settings.MARGAY_API_KEY,
    drainMs: settings.MARGAY_DRAIN_SECONDS * 1000,
    /** Told to nobody else: children get it merged with what they need. */
    environment: {
      // Half of what a worker's process takes to start is compiling the same code again.
      NODE_COMPILE_CACHE: join(stateFolder, "compiled"),
      ...process.env,
      MARGAY_STATE_DIR: stateFolder,
    } as Readonly<Record<string, string | undefined>>,
    path: process.env.PATH ?? "",
    runFile: join(stateFolder, "run.json"),
  };
}

export type CliConfig = ReturnType<typeof cliConfig>;
