import { openEngine } from "#native";
import { runService } from "#service/run-service.ts";
import { createWorkerProcess } from "#service/worker-process.ts";
import { readConfig } from "./config.ts";
import { createDecodeNode } from "./decode-node.ts";

await runService({
  name: (config) => `decode ${config.workerId ?? ""}`.trim(),
  configure: readConfig,
  create: (config, context) =>
    createWorkerProcess("decode", config, context, (parts) => createDecodeNode({ ...parts, openEngine })),
});
