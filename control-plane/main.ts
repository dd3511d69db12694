import { runService } from "#service/run-service.ts";
import { readControlPlaneConfig } from "./config.ts";
import { ControlPlane } from "./control-plane.ts";

await runService({
  name: "control-plane",
  configure: () => readControlPlaneConfig(),
  create: (config, context) => ControlPlane.create(config, context),
});
