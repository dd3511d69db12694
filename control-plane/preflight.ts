import { loadServedModel } from "./chat/served-model.ts";
import { readControlPlaneConfig } from "./config.ts";
import { readKeyFile } from "./tenancy/keyring.ts";

/** Stands for a bus that is not running yet: only its presence is checked. */
const ANY_BUS = "nats://127.0.0.1";

/**
 * Finds what would keep a control plane from starting, before anything is started for it: settings, keys and checkpoints.
 * Throws `SettingsError`, `KeyFileError` or `CheckpointError`. What only the weights can tell is found by the workers.
 */
export async function preflight(environment: Readonly<Record<string, string | undefined>>): Promise<void> {
  const config = readControlPlaneConfig({ ...environment, MARGAY_NATS_URL: environment.MARGAY_NATS_URL ?? ANY_BUS });
  if (config.keysFile !== null) await readKeyFile(config.keysFile);
  for (const [name, folder] of config.models) await loadServedModel(name, folder);
}
