import { openEngine } from "#native";
import { connectBus } from "#service/connect-bus.ts";
import { startHealthServer } from "#service/health-server.ts";
import { createMetrics } from "#service/metrics.ts";
import type { Service, ServiceContext } from "#service/run-service.ts";
import type { WorkerConfig } from "#service/worker-config.ts";
import { DecodeNode } from "./decode-node.ts";

/** A decode rank as a process: the node over the real bus, engine and health server. */
export async function createDecodeService(config: WorkerConfig, context: ServiceContext): Promise<Service> {
  const { clock, random, logger } = context;
  const metrics = createMetrics({ processMetrics: true });
  const bus = await connectBus({
    ...config.nats,
    role: "decode",
    name: config.workerId ?? "decode",
    clock,
    random,
    logger,
    metrics,
  });
  let node: DecodeNode | null = null;
  const health = await startHealthServer({
    ...config.health,
    readiness: () => node?.readiness() ?? { ready: false, checks: {} },
    metrics,
  });
  const decode = new DecodeNode({
    ...context,
    config,
    bus,
    metrics,
    openEngine,
    healthUrl: health.url,
    pid: process.pid,
  });
  node = decode;
  return {
    start: () => decode.start(),
    drain: (deadlineMs) => decode.drain(deadlineMs),
    async [Symbol.asyncDispose]() {
      await decode[Symbol.asyncDispose]();
      await bus.close(1_000);
      await health[Symbol.asyncDispose]();
    },
  };
}
