import { readWorkerConfig, type WorkerConfig } from "#service/worker-config.ts";

/** Reads the configuration of a prefill worker. Throws `SettingsError`. */
export function readConfig(): WorkerConfig {
  return readWorkerConfig(process.env);
}
