import { readWorkerConfig, type WorkerConfig } from "#service/worker-config.ts";

/** Reads the configuration of a decode worker. Throws `SettingsError`. */
export function readConfig(): WorkerConfig {
  return readWorkerConfig(process.env);
}
