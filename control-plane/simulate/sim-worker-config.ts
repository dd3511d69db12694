import type { WorkerConfig } from "#service/worker-config.ts";

/** An engine's options where it is simulated; most of them mean nothing to it. */
export const SIM_ENGINE = {
  modelFolder: "sim",
  backend: "auto",
  threads: 0,
  pinThreads: false,
  packedFolder: null,
  latentNormEps: null,
  weightFormat: "checkpoint",
  deterministic: false,
  speculation: 1,
  slots: 8,
  kvBlocks: 64,
  kvBytes: 0,
  kvTierBytes: 0,
  kvTierFolder: null,
  maxStepTokens: 128,
  kvHost: "127.0.0.1",
  kvPort: 0,
  kvTransport: "auto",
  kvTls: null,
} as const satisfies WorkerConfig["engine"];

/** Settings of a simulated worker of one rank, but for what is given. */
export function simWorkerConfig(
  given: Partial<Omit<WorkerConfig, "engine">> & Pick<WorkerConfig, "workerId" | "modelName">,
  engine: Partial<WorkerConfig["engine"]>,
): WorkerConfig {
  return {
    logLevel: "silent",
    drainMs: 1_000,
    rank: 0,
    ranks: 1,
    nats: { url: "nats://127.0.0.1:1", user: null, password: null, tls: null },
    health: { host: "127.0.0.1", port: 0 },
    kvAdvertise: null,
    exchangeAdvertise: null,
    traceEndpoint: null,
    tpotGoalMs: 0,
    ...given,
    engine: { ...SIM_ENGINE, ...engine },
  };
}
