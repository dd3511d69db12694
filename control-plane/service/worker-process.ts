import { rankIdOf } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import { connectBus } from "./connect-bus.ts";
import { type Readiness, startHealthServer } from "./health-server.ts";
import { createMetrics } from "./metrics.ts";
import type { Service, ServiceContext } from "./run-service.ts";
import type { TraceSpan } from "./tracer.ts";
import { Tracing } from "./tracing/tracing.ts";
import type { WorkerConfig } from "./worker-config.ts";
import type { WorkerNodeParts } from "./worker-node.ts";

type TracedService = Service & { readiness(): Readiness; trace(ms: number): Promise<readonly TraceSpan[] | null> };

/** A node as a process: over the real bus, with a health server. The engine comes with `createNode`. */
export async function createWorkerProcess(
  role: Role,
  config: WorkerConfig,
  context: ServiceContext,
  createNode: (parts: WorkerNodeParts) => TracedService,
): Promise<Service> {
  const { clock, random, logger } = context;
  const bornMs = clock.monotonic() - 1000 * process.uptime();
  const metrics = createMetrics({ processMetrics: true, telling: { teller: role, models: [config.modelName] } });
  const name = config.workerId === null ? role : rankIdOf(config.workerId, config.rank);
  const bus = await connectBus({ ...config.nats, role, name, clock, random, logger, metrics });
  let traced: TracedService | null = null;
  const health = await startHealthServer({
    ...config.health,
    metrics,
    readiness: () => traced?.readiness() ?? { ready: false, checks: {} },
    trace: async (ms) => (await traced?.trace(ms)) ?? null,
  });
  const tracing = new Tracing({
    ...{ clock, random, logger, metrics },
    config: { endpoint: config.traceEndpoint, sample: 0 },
    resource: { "service.name": `margay-${role}`, "service.instance.id": name },
  });
  const node = createNode({
    ...context,
    config,
    bus,
    metrics,
    tracing,
    healthUrl: health.url,
    pid: process.pid,
    bornMs,
  });
  traced = node;
  return {
    start: () => node.start(),
    drain: (deadlineMs) => node.drain(deadlineMs),
    async [Symbol.asyncDispose]() {
      await node[Symbol.asyncDispose]();
      await tracing.close();
      await bus.close(1_000);
      await health[Symbol.asyncDispose]();
    },
  };
}
