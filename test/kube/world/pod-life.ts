import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { isKubeError, type KubeApi } from "../../../control-plane/kube/kube-api.ts";
import type { Image } from "./container.ts";
import { ContainerLife } from "./container-life.ts";
import type { Container, Pod } from "./objects.ts";
import { PodFiles } from "./pod-files.ts";
import { NODE_IP, type PodNetwork } from "./pod-network.ts";

export interface PodLifeParts {
  readonly api: KubeApi;
  readonly pod: Pod;
  readonly network: PodNetwork;
  readonly hostsFile: string;
  readonly images: readonly Image[];
  /** Scratch of this pod. */
  readonly folder: string;
}

/**
 * One pod as a kubelet runs it.
 *
 *   Pending (volumes, init containers) -> Running -> Succeeded | Failed;   asked to end -> stopped -> deleted
 *
 * Writes the pod's status after every change, one write at a time.
 */
export class PodLife {
  readonly #parts: PodLifeParts;
  readonly #startTime = new Date().toISOString().replace(/\.\d+Z$/, "Z");
  #inits: ContainerLife[] = [];
  #containers: ContainerLife[] = [];
  #trouble: string | null = null;
  #initialized = false;
  #phase: "Pending" | "Running" | "Succeeded" | "Failed" = "Pending";
  #stopping = false;
  #gone = false;
  #dirty = false;
  #writing = false;
  readonly #started: Promise<void>;

  constructor(parts: PodLifeParts) {
    this.#parts = parts;
    this.#started = this.#start();
  }

  get stopping(): boolean {
    return this.#stopping;
  }

  /** The API server wants it gone: ends it with its grace, then takes it out of the API. */
  async end(graceMs: number): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    await Promise.all([...this.#inits, ...this.#containers].map((one) => one.stop(graceMs)));
    await this.#started.catch(() => {});
    const { api, network, pod } = this.#parts;
    network.remove();
    const { name, namespace, uid } = pod.metadata;
    const path = `/api/v1/namespaces/${namespace}/pods/${name}`;
    for (let tries = 0; !this.#gone && tries < 600; tries++) {
      const done = await api
        .call({ method: "DELETE", path, body: { gracePeriodSeconds: 0, preconditions: { uid } } })
        .then(
          () => true,
          (error: unknown) => isKubeError(error, 404) || isKubeError(error, 409),
        );
      if (done) return;
      await sleep(200);
    }
  }

  /** It is out of the API already: nobody waits for it any more. */
  kill(): void {
    this.#stopping = true;
    this.#gone = true;
    const lives = [...this.#inits, ...this.#containers];
    for (const one of lives) one.kill();
    void Promise.all(lives.map((one) => one.ended)).then(() => this.#parts.network.remove());
  }

  async #start(): Promise<void> {
    const { spec } = this.#parts.pod;
    const made = await this.#prepared();
    if (made === null) return;
    const restart = spec.restartPolicy ?? "Always";
    for (const container of spec.initContainers ?? []) {
      if (this.#stopping) return;
      const life = await made(container, restart === "Never" ? "Never" : "OnFailure");
      this.#inits.push(life);
      if ((await life.ended) !== 0) {
        this.#phase = "Failed";
        this.#changed();
        return;
      }
    }
    this.#initialized = true;
    if (this.#stopping) return;
    for (const container of spec.containers) this.#containers.push(await made(container, restart));
    this.#phase = "Running";
    this.#changed();
    void Promise.all(this.#containers.map((one) => one.ended)).then((codes) => {
      this.#phase = codes.every((code) => code === 0) ? "Succeeded" : "Failed";
      this.#changed();
    });
  }

  /** Volumes and environment; tried again until what is missing is there. */
  async #prepared(): Promise<
    ((container: Container, restart: "Always" | "OnFailure" | "Never") => Promise<ContainerLife>) | null
  > {
    const { api, pod, network, folder, images, hostsFile } = this.#parts;
    const files = new PodFiles(api, pod, network.ip, folder);
    while (!this.#stopping) {
      try {
        const volumes = await files.volumes();
        const environments = new Map<string, Record<string, string>>();
        const all = [...(pod.spec.initContainers ?? []), ...pod.spec.containers];
        for (const container of all) environments.set(container.name, await files.environment(container));
        this.#trouble = null;
        return async (container, restart) => {
          const own = join(folder, container.name);
          await mkdir(own, { recursive: true });
          return new ContainerLife(
            {
              ...{ container, volumes, hostsFile, folder: own, networkPath: network.path },
              image: images.find(({ name }) => container.image.includes(name)) ?? null,
              environment: {
                HOSTNAME: pod.metadata.name,
                KUBERNETES_SERVICE_HOST: "10.96.0.1",
                KUBERNETES_SERVICE_PORT: "443",
                ...environments.get(container.name),
              },
              security: { ...pod.spec.securityContext, ...container.securityContext },
            },
            network.ip,
            restart,
            () => this.#changed(),
          );
        };
      } catch (error) {
        this.#trouble = (error as Error).message;
        this.#changed();
        await sleep(500);
      }
    }
    return null;
  }

  #changed(): void {
    this.#dirty = true;
    if (!this.#writing) void this.#write();
  }

  async #write(): Promise<void> {
    this.#writing = true;
    const { api, pod } = this.#parts;
    const { name, namespace } = pod.metadata;
    while (this.#dirty && !this.#gone) {
      this.#dirty = false;
      const body = { metadata: { uid: pod.metadata.uid }, status: this.#status() };
      const path = `/api/v1/namespaces/${namespace}/pods/${name}/status`;
      try {
        await api.call({ method: "PATCH", path, body, bodyType: "application/strategic-merge-patch+json" });
      } catch (error) {
        if (isKubeError(error, 404) || isKubeError(error, 409)) break;
        this.#dirty = true;
        await sleep(200);
      }
    }
    this.#writing = false;
  }

  #status(): object {
    const { pod, network } = this.#parts;
    const ready = this.#phase === "Running" && this.#containers.every((one) => one.ready);
    const at = new Date().toISOString().replace(/\.\d+Z$/, "Z");
    const condition = (type: string, yes: boolean): object => ({
      type,
      status: yes ? "True" : "False",
      lastTransitionTime: at,
    });
    const waiting = (container: Container): object => ({
      ...{ name: container.name, image: container.image, imageID: "", ready: false, restartCount: 0 },
      state: {
        waiting:
          this.#trouble === null
            ? { reason: "ContainerCreating" }
            : { reason: "CreateContainerConfigError", message: this.#trouble },
      },
    });
    const statuses = (lives: readonly ContainerLife[], containers: readonly Container[]): readonly object[] =>
      containers.map((container, index) => lives[index]?.status() ?? waiting(container));
    return {
      phase: this.#phase,
      ...{ podIP: network.ip, podIPs: [{ ip: network.ip }], hostIP: NODE_IP, startTime: this.#startTime },
      conditions: [
        condition("Initialized", this.#initialized),
        condition("ContainersReady", ready),
        condition("Ready", ready),
      ],
      initContainerStatuses: statuses(this.#inits, pod.spec.initContainers ?? []),
      containerStatuses: statuses(this.#containers, pod.spec.containers),
    };
  }
}
