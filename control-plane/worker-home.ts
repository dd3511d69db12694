import type { GatewayId, RankId } from "#protocol/ids.ts";
import type { Metrics } from "#service/metrics.ts";
import type { ServiceContext } from "#service/run-service.ts";
import type { ControlPlaneConfig, KubeConfig } from "./config.ts";
import { LeaderLease } from "./kube/leader-lease.ts";
import type { ScaleTarget } from "./scaling/scale-target.ts";
import { KubeTarget } from "./scaling/targets/kube.ts";
import { ProcessTarget, type ProcessTargetParts, WORKER_PROGRAMS } from "./scaling/targets/process.ts";

/** Where the workers run, and whether this control plane is the one that decides how many there are. */
export interface WorkerHome {
  readonly target: ScaleTarget;
  /** No other control plane can serve in this one's place. */
  readonly alone: boolean;
  /** `onLead` is called with true when this control plane begins to decide, and with false when it ends. */
  start(onLead: (leads: boolean) => void): void;
  /** Somebody else shall decide from now on, if there is somebody. */
  yield(): Promise<void>;
}

/** Processes of this machine: the control plane that started them is the only one there is. */
export function processHome(
  config: ControlPlaneConfig,
  context: ServiceContext,
  metrics: Metrics,
  roleEnvironment: ProcessTargetParts["roleEnvironment"],
  onEnd: (rankId: RankId) => void,
): WorkerHome {
  const target = new ProcessTarget({
    ...context,
    ...{ metrics, roleEnvironment, onEnd },
    folders: config.models,
    environment: config.workerEnvironment,
    drainMs: config.drainMs,
    programs: WORKER_PROGRAMS,
    ranks: config.ranks,
  });
  return {
    target,
    alone: true,
    start(onLead) {
      metrics.gauge("margay_leader", {}, 1);
      onLead(true);
    },
    yield: async () => {},
  };
}

/** Pods of the cluster: of several control planes the holder of a Lease decides. Throws where there is no cluster. */
export async function kubeHome(
  config: KubeConfig,
  ranks: ControlPlaneConfig["ranks"],
  context: ServiceContext,
  metrics: Metrics,
  gatewayId: GatewayId,
  onEnd: (rankId: RankId) => void,
): Promise<WorkerHome> {
  // The library takes most of a second and 90 MB: nobody pays for it who has no cluster.
  const { connectKube } = await import("./kube/kube-client.ts");
  const { api, namespace: own } = connectKube(null, context.clock);
  const namespace = config.namespace ?? own;
  const instance = config.podName === null ? gatewayId : `${config.podName}_${gatewayId}`;
  let tellLead: (leads: boolean) => void = () => {};
  const lease = new LeaderLease({
    ...context,
    ...{ api, namespace },
    name: config.release,
    identity: instance,
    onChange: (leads) => tellLead(leads),
  });
  const target = new KubeTarget({
    ...context,
    ...{ api, metrics, namespace, instance, onEnd },
    ...{ release: config.release, ranks },
    leads: () => lease.leads,
  });
  return {
    target,
    alone: false,
    start(onLead) {
      tellLead = (leads) => {
        if (!leads) target.hold();
        onLead(leads);
      };
      target.start();
      lease.start();
    },
    yield: () => lease.release(),
  };
}
