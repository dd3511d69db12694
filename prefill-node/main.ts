import { runService } from "#service/run-service.ts";
import { readConfig } from "./config.ts";
import { createPrefillService } from "./prefill-service.ts";

await runService({
  name: (config) => `prefill ${config.workerId ?? ""}`.trim(),
  configure: readConfig,
  create: createPrefillService,
});
