import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { isKubeError, type KubeApi } from "../../../control-plane/kube/kube-api.ts";
import { WatchedList } from "../../../control-plane/kube/watched-list.ts";
import { systemClock, systemRandom } from "../../../control-plane/service/clock.ts";
import { silentLogger } from "../../../control-plane/service/logger.ts";
import type { Image } from "./container.ts";
import type { Pod } from "./objects.ts";
import { PodLife } from "./pod-life.ts";
import { NODE_IP, type PodNetworks } from "./pod-network.ts";

export interface KubeletParts {
  readonly api: KubeApi;
  readonly node: string;
  readonly folder: string;
  readonly images: readonly Image[];
  readonly networks: PodNetworks;
  /** The file of host names for pods of a namespace. */
  readonly hostsFile: (namespace: string) => string;
}

const CAPACITY = { cpu: "16", memory: "64Gi", pods: "110", "ephemeral-storage": "100Gi" };
/** A node whose lease is not renewed is unreachable after 40 s. */
const LEASE_MS = 10_000;

/** One node of the test cluster: runs the pods that the scheduler gives it as processes of this machine. */
export class Kubelet {
  readonly #parts: KubeletParts;
  readonly #lives = new Map<string, PodLife>();
  readonly #pods: WatchedList<Pod>;

  constructor(parts: KubeletParts) {
    this.#parts = parts;
    this.#pods = new WatchedList<Pod>({
      api: parts.api,
      ...{ clock: systemClock, random: systemRandom, logger: silentLogger },
      path: "/api/v1/pods",
      query: { fieldSelector: `spec.nodeName=${parts.node}` },
      item: z.custom<Pod>(),
      onChange: () => this.#look(),
    });
  }

  async start(): Promise<void> {
    const { api, node } = this.#parts;
    const at = new Date().toISOString().replace(/\.\d+Z$/, "Z");
    const conditions = [
      { type: "Ready", status: "True", reason: "KubeletReady", lastHeartbeatTime: at, lastTransitionTime: at },
    ];
    const metadata = {
      name: node,
      labels: { "kubernetes.io/hostname": node, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64" },
    };
    await api.call({ method: "POST", path: "/api/v1/nodes", body: { apiVersion: "v1", kind: "Node", metadata } });
    await api.call({
      method: "PATCH",
      path: `/api/v1/nodes/${node}/status`,
      bodyType: "application/strategic-merge-patch+json",
      body: {
        status: {
          capacity: CAPACITY,
          allocatable: CAPACITY,
          conditions,
          addresses: [{ type: "InternalIP", address: NODE_IP }],
        },
      },
    });
    await this.#renew();
    setInterval(() => void this.#renew().catch(() => {}), LEASE_MS);
    this.#pods.start();
  }

  async #renew(): Promise<void> {
    const { api, node } = this.#parts;
    const collection = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    const renewTime = new Date().toISOString().replace("Z", "000Z");
    const spec = { holderIdentity: node, leaseDurationSeconds: 40, renewTime };
    const body = { apiVersion: "coordination.k8s.io/v1", kind: "Lease", metadata: { name: node }, spec };
    try {
      await api.call({
        method: "PATCH",
        path: `${collection}/${node}`,
        body: { spec },
        bodyType: "application/merge-patch+json",
      });
    } catch (error) {
      if (!isKubeError(error, 404)) throw error;
      await api.call({ method: "POST", path: collection, body });
    }
  }

  #look(): void {
    const { api, folder, images, networks, hostsFile } = this.#parts;
    for (const [uid, pod] of this.#pods.items) {
      const { metadata, status } = pod;
      let life = this.#lives.get(uid);
      if (life === undefined) {
        if (metadata.deletionTimestamp == null && (status?.phase === "Failed" || status?.phase === "Succeeded"))
          continue;
        const own = join(folder, `${metadata.namespace}_${metadata.name}_${uid.slice(0, 8)}`);
        mkdirSync(own, { recursive: true });
        life = new PodLife({
          api,
          pod,
          network: networks.add(),
          images,
          folder: own,
          hostsFile: hostsFile(metadata.namespace),
        });
        this.#lives.set(uid, life);
      }
      if (metadata.deletionTimestamp != null && !life.stopping) {
        void life.end((metadata.deletionGracePeriodSeconds ?? 30) * 1000);
      }
    }
    for (const [uid, life] of this.#lives) {
      if (this.#pods.items.has(uid)) continue;
      this.#lives.delete(uid);
      life.kill();
    }
  }
}
