import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Image } from "./container.ts";
import { openGate } from "./gate.ts";
import { Kubelet } from "./kubelet.ts";
import { ClusterParts, type PartName } from "./parts.ts";
import { PodNetworks } from "./pod-network.ts";
import { ServiceProxy } from "./service-proxy.ts";

/**
 * A whole cluster in the namespaces this process runs in: the control plane's programs, two nodes, Services. It ends
 * when its parent does, and everything in it with it.
 */
export interface WorldSetup {
  readonly program: string;
  readonly folder: string;
  readonly images: readonly Image[];
  readonly nodes: readonly string[];
}

/** What the tests may ask of it. */
export type WorldCommand = { readonly kind: "stop" | "start"; readonly part: PartName };
export type WorldNews =
  | { readonly kind: "ready"; readonly kubeconfig: string }
  | { readonly kind: "done" }
  | { readonly kind: "failed"; readonly why: string };

process.once("message", (setup) => void run(setup as WorldSetup).catch(fail));
process.once("disconnect", () => process.exit(0));

async function run({ program, folder, images, nodes }: WorldSetup): Promise<void> {
  const parts = new ClusterParts(program, folder);
  await parts.startAll();
  const proxy = new ServiceProxy(parts.api, folder);
  proxy.start();
  const networks = new PodNetworks();
  for (const node of nodes) {
    const own = join(folder, node);
    mkdirSync(own);
    const kubelet = new Kubelet({
      api: parts.api,
      ...{ node, images },
      folder: own,
      networks,
      hostsFile: (namespace) => proxy.hostsFile(namespace),
    });
    await kubelet.start();
  }
  // Pods are refused before it is there.
  while (!(await exists(parts, "/api/v1/namespaces/default/serviceaccounts/default"))) await sleep(50);
  await openGate(join(folder, "gate"));
  process.on("message", (command) => void obey(parts, command as WorldCommand));
  tell({ kind: "ready", kubeconfig: parts.kubeconfig("https://GATE") });
}

function exists({ api }: ClusterParts, path: string): Promise<boolean> {
  return api.call({ method: "GET", path }).then(
    () => true,
    () => false,
  );
}

async function obey(parts: ClusterParts, { kind, part }: WorldCommand): Promise<void> {
  try {
    if (kind === "stop") await parts.stop(part);
    else if (part === "kube-apiserver") await parts.startApi();
    else throw new Error(`only the API server is started again, not ${part}`);
    tell({ kind: "done" });
  } catch (error) {
    tell({ kind: "failed", why: (error as Error).message });
  }
}

function tell(news: WorldNews): void {
  process.send?.(news);
}

function fail(error: unknown): void {
  tell({ kind: "failed", why: (error as Error).message });
  process.exit(1);
}
