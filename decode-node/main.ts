import { runService } from "#service/run-service.ts";
import { readConfig } from "./config.ts";
import { createDecodeService } from "./decode-service.ts";

await runService({
  name: (config) => `decode ${config.workerId ?? ""}`.trim(),
  configure: readConfig,
  create: createDecodeService,
});
