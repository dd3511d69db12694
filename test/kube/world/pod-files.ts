import { chmod, mkdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { KubeApi } from "../../../control-plane/kube/kube-api.ts";
import type { Container, EnvVar, KeyPath, Pod, Volume, VolumeSource } from "./objects.ts";
import { NODE_IP } from "./pod-network.ts";

/** Environment and volumes of one pod, read from the API server as a kubelet reads them. */
export class PodFiles {
  readonly #api: KubeApi;
  readonly #pod: Pod;
  readonly #podIp: string;
  readonly #folder: string;

  constructor(api: KubeApi, pod: Pod, podIp: string, folder: string) {
    this.#api = api;
    this.#pod = pod;
    this.#podIp = podIp;
    this.#folder = folder;
  }

  /** Makes all volumes. Returns where each lies on this machine. Throws what is missing in one sentence. */
  async volumes(): Promise<ReadonlyMap<string, string>> {
    const made = new Map<string, string>();
    for (const volume of this.#pod.spec.volumes ?? []) made.set(volume.name, await this.#volume(volume));
    return made;
  }

  async environment(container: Container): Promise<Record<string, string>> {
    const environment: Record<string, string> = {};
    for (const { configMapRef, secretRef } of container.envFrom ?? []) {
      const ref = configMapRef ?? secretRef;
      if (ref === undefined) continue;
      const data = await this.#data(configMapRef === undefined ? "secrets" : "configmaps", ref.name, ref.optional);
      for (const [key, value] of Object.entries(data)) environment[key] = value.toString();
    }
    for (const variable of container.env ?? []) {
      const value = await this.#value(variable);
      if (value !== null) environment[variable.name] = expand(value, environment);
    }
    return environment;
  }

  async #value({ value, valueFrom }: EnvVar): Promise<string | null> {
    if (valueFrom === undefined) return value ?? "";
    const { fieldRef, secretKeyRef, configMapKeyRef } = valueFrom;
    if (fieldRef !== undefined) return this.#field(fieldRef.fieldPath);
    const ref = secretKeyRef ?? configMapKeyRef;
    if (ref === undefined) return "";
    const data = await this.#data(secretKeyRef === undefined ? "configmaps" : "secrets", ref.name, ref.optional);
    const found = data[ref.key];
    if (found === undefined && ref.optional !== true) throw new Error(`couldn't find key ${ref.key} in ${ref.name}`);
    return found?.toString() ?? null;
  }

  #field(path: string): string {
    const { metadata, spec } = this.#pod;
    const [, kind, key] = /^metadata\.(labels|annotations)\['(.+)'\]$/.exec(path) ?? [];
    if (kind === "labels") return metadata.labels?.[key!] ?? "";
    if (kind === "annotations") return metadata.annotations?.[key!] ?? "";
    const fields: Record<string, string> = {
      "metadata.name": metadata.name,
      "metadata.namespace": metadata.namespace,
      "metadata.uid": metadata.uid,
      "spec.nodeName": spec.nodeName ?? "",
      "spec.serviceAccountName": spec.serviceAccountName ?? "default",
      "status.podIP": this.#podIp,
      "status.podIPs": this.#podIp,
      "status.hostIP": NODE_IP,
    };
    const found = fields[path];
    if (found === undefined) throw new Error(`the field ${path} is not known here`);
    return found;
  }

  async #volume(volume: Volume): Promise<string> {
    if (volume.hostPath !== undefined) return volume.hostPath.path;
    if (volume.persistentVolumeClaim !== undefined) return this.#claimed(volume.persistentVolumeClaim.claimName);
    const folder = join(this.#folder, "volumes", volume.name);
    await mkdir(folder, { recursive: true });
    // Whoever the pod's user is.
    await chmod(folder, 0o777);
    for (const source of volume.projected?.sources ?? [volume]) await this.#fill(folder, source);
    return folder;
  }

  /** A claim that is bound to a volume of type hostPath. */
  async #claimed(name: string): Promise<string> {
    const { namespace } = this.#pod.metadata;
    const claim = (await this.#get(`/api/v1/namespaces/${namespace}/persistentvolumeclaims/${name}`)) as {
      readonly spec: { readonly volumeName?: string };
    };
    const volume = (await this.#get(`/api/v1/persistentvolumes/${claim.spec.volumeName}`)) as {
      readonly spec: { readonly hostPath: { readonly path: string } };
    };
    return volume.spec.hostPath.path;
  }

  async #fill(folder: string, source: VolumeSource): Promise<void> {
    const { configMap, secret, downwardAPI, serviceAccountToken } = source;
    const write = async (path: string, content: string | Buffer): Promise<void> => {
      await mkdir(dirname(join(folder, path)), { recursive: true });
      await writeFile(join(folder, path), content);
    };
    const writeAll = async (data: Record<string, Buffer>, items: readonly KeyPath[] | undefined): Promise<void> => {
      const wanted = items ?? Object.keys(data).map((key) => ({ key, path: key }));
      for (const { key, path } of wanted) {
        const content = data[key];
        if (content === undefined) throw new Error(`references non-existent key: ${key}`);
        await write(path, content);
      }
    };
    if (configMap !== undefined) {
      await writeAll(await this.#data("configmaps", configMap.name, configMap.optional), configMap.items);
    }
    if (secret !== undefined) {
      const name = secret.secretName ?? secret.name!;
      await writeAll(await this.#data("secrets", name, secret.optional), secret.items);
    }
    for (const { path, fieldRef } of downwardAPI?.items ?? []) await write(path, this.#field(fieldRef.fieldPath));
    if (serviceAccountToken !== undefined)
      await write(serviceAccountToken.path, await this.#token(serviceAccountToken));
  }

  async #token(ask: NonNullable<VolumeSource["serviceAccountToken"]>): Promise<string> {
    const { metadata, spec } = this.#pod;
    const account = spec.serviceAccountName ?? "default";
    const made = (await this.#api.call({
      method: "POST",
      path: `/api/v1/namespaces/${metadata.namespace}/serviceaccounts/${account}/token`,
      body: {
        apiVersion: "authentication.k8s.io/v1",
        kind: "TokenRequest",
        spec: {
          audiences: ask.audience === undefined ? [] : [ask.audience],
          expirationSeconds: ask.expirationSeconds ?? 3600,
          boundObjectRef: { apiVersion: "v1", kind: "Pod", name: metadata.name, uid: metadata.uid },
        },
      },
    })) as { readonly status: { readonly token: string } };
    return made.status.token;
  }

  async #data(kind: "configmaps" | "secrets", name: string, optional = false): Promise<Record<string, Buffer>> {
    const path = `/api/v1/namespaces/${this.#pod.metadata.namespace}/${kind}/${name}`;
    const found = (await this.#get(path).catch((error: unknown) => {
      if (optional) return {};
      throw error;
    })) as { readonly data?: Record<string, string>; readonly binaryData?: Record<string, string> };
    const encoding = kind === "secrets" ? "base64" : "utf8";
    const decode = (all: Record<string, string> | undefined, how: BufferEncoding): [string, Buffer][] =>
      Object.entries(all ?? {}).map(([key, value]) => [key, Buffer.from(value, how)]);
    return Object.fromEntries([...decode(found.data, encoding), ...decode(found.binaryData, "base64")]);
  }

  #get(path: string): Promise<unknown> {
    return this.#api.call({ method: "GET", path });
  }
}

/** `$(NAME)` of a command, an argument or a value; `$$(NAME)` stays. */
export function expand(text: string, environment: Readonly<Record<string, string>>): string {
  return text.replace(/\$(\$?)\(([^)]+)\)/g, (whole, escaped: string, name: string) =>
    escaped === "$" ? whole.slice(1) : (environment[name] ?? whole),
  );
}
