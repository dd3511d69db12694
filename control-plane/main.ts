import { flushCompileCache } from "node:module";
import { runService } from "#service/run-service.ts";
import { readControlPlaneConfig } from "./config.ts";
import { ControlPlane } from "./control-plane.ts";

// Workers share most of the code that is loaded now, and the first of them starts before this process ends.
flushCompileCache();
await runService({
  name: "control-plane",
  configure: () => readControlPlaneConfig(),
  create: (config, context) => ControlPlane.create(config, context),
});
