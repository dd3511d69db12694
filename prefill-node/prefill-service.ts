import { openEngine } from "#native";
import { connectBus } from "#service/connect-bus.ts";
import { startHealthServer } from "#service/health-server.ts";
import { createMetrics } from "#service/metrics.ts";
import type { Service, ServiceContext } from "#service/run-service.ts";
import type { WorkerConfig } from "#service/worker-config.ts";
import { PrefillNode } from "./prefill-node.ts";

/** A prefill rank as a process: the node over the real bus, engine and health server. */
export async function createPrefillService(config: WorkerConfig, context: ServiceContext): Promise<Service> {
  const { clock, random, logger } = context;
  const metrics = createMetrics({ processMetrics: true });
  const bus = await connectBus({
    ...config.nats,
    role: "prefill",
    name: config.workerId ?? "prefill",
    clock,
    random,
    logger,
    metrics,
  });
  let node: PrefillNode | null = null;
  const health = await startHealthServer({
    ...config.health,
    readiness: () => node?.readiness() ?? { ready: false, checks: {} },
    metrics,
  });
  const prefill = new PrefillNode({
    ...context,
    config,
    bus,
    metrics,
    openEngine,
    healthUrl: health.url,
    pid: process.pid,
  });
  node = prefill;
  return {
    start: () => prefill.start(),
    drain: (deadlineMs) => prefill.drain(deadlineMs),
    async [Symbol.asyncDispose]() {
      await prefill[Symbol.asyncDispose]();
      await bus.close(1_000);
      await health[Symbol.asyncDispose]();
    },
  };
}
