import type { GatewayId, ModelName } from "#protocol/ids.ts";
import { connectBus } from "#service/connect-bus.ts";
import { createMetrics } from "#service/metrics.ts";
import { runService } from "#service/run-service.ts";
import { loadServedModel, type ServedModel } from "../../../control-plane/chat/served-model.ts";
import { readControlPlaneConfig } from "../../../control-plane/config.ts";
import { ControlPlane } from "../../../control-plane/control-plane.ts";
import { FleetWatch } from "../../../control-plane/fleet/fleet-watch.ts";
import { Keyring } from "../../../control-plane/tenancy/keyring.ts";
import { Ledger } from "../../../control-plane/tenancy/ledger.ts";
import { Limiter } from "../../../control-plane/tenancy/limiter.ts";
import { KeyedTenancy } from "../../../control-plane/tenancy/tenancy.ts";
import type { WorkerHome } from "../../../control-plane/worker-home.ts";

/** Workers come by themselves: nothing is started or stopped from here. */
const ELSEWHERE: WorkerHome = {
  target: {
    wanted: () => null,
    scale: () => {},
    hold: () => {},
    workers: () => [],
    stop: async () => {},
    replace: () => {},
    lastFailure: () => null,
    close: async () => {},
  },
  alone: true,
  start: (onLead) => onLead(true),
  yield: async () => {},
};

// The control plane as it is, but for where workers come from: theirs is a process of simulated engines.
await runService({
  name: "control-plane",
  configure: () => readControlPlaneConfig(),
  async create(config, context) {
    const { clock, random, logger } = context;
    const gatewayId = `gw-${random.hex(4)}` as GatewayId;
    const models = new Map<ModelName, ServedModel>();
    for (const [name, folder] of config.models) models.set(name, await loadServedModel(name, folder));
    const metrics = createMetrics({
      processMetrics: true,
      telling: { teller: "control-plane", models: [...config.models.keys()] },
    });
    const name = gatewayId;
    const bus = await connectBus({ ...config.nats, role: "control-plane", name, clock, random, logger, metrics });
    const fleet = new FleetWatch({ bus, clock, logger, gatewayId });
    const keyring = await Keyring.open({ path: config.keysFile!, clock, logger, metrics });
    const limiter = new Limiter({ bus, clock, random, gatewayId });
    const ledger = new Ledger({ bus, clock, logger, metrics });
    const tenancy = new KeyedTenancy({ keyring, clock, metrics, limiter, ledger });
    const ground = { gatewayId, models, metrics, bus, fleet, home: ELSEWHERE, tenancy };
    return new ControlPlane(config, context, ground);
  },
});
