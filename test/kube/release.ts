import { execFile } from "node:child_process";
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { KubeError } from "../../control-plane/kube/kube-api.ts";
import { chartFolder, kubernetesTool, type Tool } from "../support/kubernetes-tools.ts";
import { waitFor } from "../support/system.ts";
import type { KubeWorld } from "./kube-world.ts";
import { create, NAMESPACE } from "./manifests.ts";

/** What a test knows of a pod. */
export interface PodInfo {
  readonly name: string;
  readonly uid: string;
  readonly node: string;
  readonly role: string;
  readonly model: string;
  readonly annotations: Readonly<Record<string, string>>;
  readonly ready: boolean;
  readonly stopping: boolean;
  readonly createdMs: number;
}

interface WirePod {
  readonly metadata: {
    readonly name: string;
    readonly uid: string;
    readonly creationTimestamp: string;
    readonly deletionTimestamp?: string;
    readonly labels: Readonly<Record<string, string>>;
    readonly annotations?: Readonly<Record<string, string>>;
  };
  readonly spec: { readonly nodeName?: string };
  readonly status: { readonly conditions?: readonly { readonly type: string; readonly status: string }[] };
}

type Values = Readonly<Record<string, unknown>>;

/** Tools that a release needs: helm makes it, kubectl drains its nodes. */
export const RELEASE_TOOLS: readonly Tool[] = ["helm", "kubectl"];
export const PODS = `/api/v1/namespaces/${NAMESPACE}/pods`;
/** Of everything that is waited for and of which no time is promised. */
export const WAIT_MS = 120_000;
const NAME = "margay";

/** The chart as helm installs it on a cluster, and what tests look at and break of it. */
export class Release {
  readonly #world: KubeWorld;
  readonly #values: Values;
  readonly name = NAME;
  /** Of the gateway's Service. */
  readonly url: string;

  private constructor(world: KubeWorld, values: Values, url: string) {
    this.#world = world;
    this.#values = values;
    this.url = url;
  }

  /** Installs it with `values` on top of the chart's, and waits until its control planes are ready. */
  static async install(world: KubeWorld, values: Values): Promise<Release> {
    await disk(world);
    const packed = join(world.folder, "packed");
    await mkdir(packed);
    await chmod(packed, 0o777);
    const all = { packedWeights: { hostPath: packed }, ...values };
    const draft = new Release(world, all, "");
    await draft.helm("install", NAME, chartFolder, ...(await draft.#given()), "--wait", "--timeout", "120s");
    const path = `/api/v1/namespaces/${NAMESPACE}/services/${NAME}`;
    const service = (await world.api.call({ method: "GET", path })) as {
      readonly spec: { readonly clusterIP: string };
    };
    return new Release(world, all, await world.open(service.spec.clusterIP, 80));
  }

  /** A new revision; `changes` are merged into the values of the install. Does not wait for its pods. */
  async upgrade(changes: Values): Promise<void> {
    await this.helm("upgrade", NAME, chartFolder, ...(await this.#given(changes)));
  }

  /** Runs helm to its end; not in one breath, for the way to the API server leads through this process. */
  helm(...argv: readonly string[]): Promise<string> {
    return this.#run("helm", argv);
  }

  kubectl(...argv: readonly string[]): Promise<string> {
    return this.#run("kubectl", argv);
  }

  async pods(selector: string): Promise<readonly PodInfo[]> {
    const list = await this.#read(PODS, { labelSelector: selector });
    return (list as { readonly items: readonly WirePod[] }).items.map(({ metadata, spec, status }) => ({
      name: metadata.name,
      uid: metadata.uid,
      node: spec.nodeName ?? "",
      role: metadata.labels["margay.dev/role"] ?? "",
      model: metadata.annotations?.["margay.dev/model"] ?? "",
      annotations: metadata.annotations ?? {},
      ready: status.conditions?.some(({ type, status: is }) => type === "Ready" && is === "True") ?? false,
      stopping: metadata.deletionTimestamp !== undefined,
      createdMs: Date.parse(metadata.creationTimestamp),
    }));
  }

  workers(role?: string): Promise<readonly PodInfo[]> {
    return this.pods(role === undefined ? "margay.dev/role" : `margay.dev/role=${role}`);
  }

  controlPlanes(): Promise<readonly PodInfo[]> {
    return this.pods("app.kubernetes.io/component=control-plane");
  }

  /** Waits until there are two control planes, all of them as `right` wants them. */
  async settled(right: (pod: PodInfo) => boolean): Promise<void> {
    const whole = async () => {
      const pods = await this.controlPlanes();
      return pods.length === 2 && pods.every((pod) => pod.ready && !pod.stopping && right(pod)) ? true : null;
    };
    await waitFor("two control planes", whole, WAIT_MS);
  }

  /** A pod that takes work, other than one. */
  readyWorker(role: string, but = ""): Promise<PodInfo> {
    return waitFor(
      `a ready ${role} worker`,
      async () => (await this.workers(role)).find((pod) => pod.ready && !pod.stopping && pod.name !== but) ?? null,
      WAIT_MS,
    );
  }

  async nobody(): Promise<void> {
    await waitFor("no worker pods", async () => ((await this.workers()).length === 0 ? true : null), WAIT_MS);
  }

  /** Deletes a pod; without `graceSeconds` with its own. */
  async remove(name: string, graceSeconds: number | null = null): Promise<void> {
    const body = graceSeconds === null ? {} : { gracePeriodSeconds: graceSeconds };
    await this.#world.api.call({ method: "DELETE", path: `${PODS}/${name}`, body });
  }

  /** Of the control plane that leads: the pod's name; empty while none does. */
  async leader(): Promise<string> {
    const path = `/apis/coordination.k8s.io/v1/namespaces/${NAMESPACE}/leases/${NAME}`;
    const lease = (await this.#read(path)) as {
      readonly spec: { readonly holderIdentity?: string };
    };
    return (lease.spec.holderIdentity ?? "").split("_")[0]!;
  }

  /** Asks again while the API server does not answer: on a crowded machine it may be slower than a caller waits. */
  #read(path: string, query: Readonly<Record<string, string>> = {}): Promise<unknown> {
    const ask = () =>
      this.#world.api.call({ method: "GET", path, query }).catch((error: unknown) => {
        if (error instanceof KubeError && !error.refused) return null;
        throw error;
      });
    return waitFor(`an answer to GET ${path}`, ask, WAIT_MS);
  }

  /** What its processes wrote. */
  logs(): Promise<string> {
    return this.#world.logs(/margay/);
  }

  /** Values as files, of which a later one is merged into the earlier. */
  async #given(changes: Values = {}): Promise<readonly string[]> {
    const files = ["values.json", "changes.json"].map((name) => join(this.#world.folder, name));
    await writeFile(files[0]!, JSON.stringify(this.#values));
    await writeFile(files[1]!, JSON.stringify(changes));
    return files.flatMap((file) => ["--values", file]);
  }

  async #run(tool: Tool, argv: readonly string[]): Promise<string> {
    const found = kubernetesTool(tool);
    if ("lack" in found) throw new Error(found.lack);
    const { folder, kubeconfig } = this.#world;
    const config = join(folder, "outside.kubeconfig");
    await writeFile(config, kubeconfig, { mode: 0o600 });
    const env = { PATH: process.env.PATH, HOME: folder, KUBECONFIG: config };
    const done = await promisify(execFile)(found.path, [...argv], { timeout: 2 * WAIT_MS, env }).catch(
      async (error: Error) => {
        throw new Error(`${error.message}\n${await this.logs()}`);
      },
    );
    return done.stdout;
  }
}

/** What a cluster's storage class would make. */
async function disk(world: KubeWorld): Promise<void> {
  const path = join(world.folder, "disk");
  await mkdir(path);
  await chmod(path, 0o777);
  await create(world.api, "/api/v1/persistentvolumes", {
    ...{ apiVersion: "v1", kind: "PersistentVolume", metadata: { name: "disk" } },
    spec: { capacity: { storage: "1Gi" }, accessModes: ["ReadWriteOnce"], hostPath: { path } },
  });
}
