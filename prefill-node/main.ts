import { openEngine } from "#native";
import { runService } from "#service/run-service.ts";
import { createWorkerProcess } from "#service/worker-process.ts";
import { readConfig } from "./config.ts";
import { createPrefillNode } from "./prefill-node.ts";

await runService({
  name: (config) => `prefill ${config.workerId ?? ""}`.trim(),
  configure: readConfig,
  create: (config, context) =>
    createWorkerProcess("prefill", config, context, (parts) => createPrefillNode({ ...parts, openEngine })),
});
