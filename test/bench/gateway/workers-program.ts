import { parseArgs } from "node:util";
import type { ModelName, WorkerId } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { connectBus } from "#service/connect-bus.ts";
import { silentLogger } from "#service/logger.ts";
import { createMetrics } from "#service/metrics.ts";
import { simWorkerConfig } from "../../../control-plane/simulate/sim-worker-config.ts";
import { createDecodeNode } from "../../../decode-node/decode-node.ts";
import { simEngineOpener } from "../../../native/binding/sim-engine.ts";
import { SimFabric } from "../../../native/binding/sim-fabric.ts";
import { simModel } from "../../../native/binding/sim-model.ts";
import { createPrefillNode } from "../../../prefill-node/prefill-node.ts";
import { CONTEXT } from "./ground.ts";

// One prefill and one decode worker over simulated engines in one process: `--prefill-ms` is what a prompt takes,
// `--step-ms` a step of all streams, `--slots` the most streams. Prints a line when both serve.
const { values } = parseArgs({
  options: {
    name: { type: "string" },
    "prefill-ms": { type: "string" },
    "step-ms": { type: "string" },
    slots: { type: "string" },
  },
});
const fabric = new SimFabric();

async function join(role: Role, stepMs: number): Promise<void> {
  const environment = process.env;
  const metrics = createMetrics({ processMetrics: false });
  const workerId = `${values.name}-${role}` as WorkerId;
  const bus = await connectBus({
    url: environment.MARGAY_NATS_URL!,
    user: role,
    password: environment[`NATS_PASSWORD_${role.toUpperCase()}`]!,
    ...{ tls: null, role, name: workerId, clock: systemClock, random: systemRandom, logger: silentLogger, metrics },
  });
  const slots = Number(values.slots);
  const parts = {
    config: simWorkerConfig(
      { workerId, modelName: "nano" as ModelName },
      { slots, kvBlocks: 4 * slots + 4_096, maxStepTokens: 8_192, speculation: 0 },
    ),
    ...{ bus, metrics, clock: systemClock, random: systemRandom, logger: silentLogger },
    openEngine: simEngineOpener(
      simModel(systemClock, fabric, { contextLength: CONTEXT, stepMs, rowMs: 0, transferMs: 0 }),
    ),
    ...{ healthUrl: "http://127.0.0.1:1", pid: process.pid, bornMs: 0, signal: new AbortController().signal },
    stop: () => process.exit(0),
    fail: (error: unknown) => {
      process.stderr.write(`${workerId}: ${String(error)}\n`);
      process.exit(1);
    },
  };
  await (role === "prefill" ? createPrefillNode(parts) : createDecodeNode(parts)).start();
}

// A role that finds nobody to exchange pages with is put off until there is one.
await Promise.all([join("prefill", Number(values["prefill-ms"])), join("decode", Number(values["step-ms"]))]);
process.stdout.write("serving\n");
