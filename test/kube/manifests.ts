import type { KubeApi } from "../../control-plane/kube/kube-api.ts";
import { MODEL_ANNOTATION, RELEASE_LABEL, ROLE_LABEL } from "../../control-plane/kube/worker-pool.ts";

export interface Container {
  readonly [field: string]: unknown;
}

export const NAMESPACE = "default";
const DEPLOYMENTS = `/apis/apps/v1/namespaces/${NAMESPACE}/deployments`;

/** Makes one object, of the kind and in the namespace that `path` says. */
export async function create(api: KubeApi, path: string, body: object): Promise<void> {
  await api.call({ method: "POST", path, body });
}

export function deploymentPath(name: string): string {
  return `${DEPLOYMENTS}/${name}`;
}

export interface DeploymentSpec {
  readonly name: string;
  readonly replicas: number;
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
  readonly pod: object;
}

export function createDeployment(api: KubeApi, { name, replicas, labels = {}, annotations = {}, pod }: DeploymentSpec) {
  const all = { app: name, ...labels };
  return create(api, DEPLOYMENTS, {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name, labels: all, annotations },
    spec: {
      replicas,
      selector: { matchLabels: { app: name } },
      template: { metadata: { labels: all, annotations }, spec: pod },
    },
  });
}

/** A pool of workers as the control plane finds it. */
export function createPool(
  api: KubeApi,
  {
    release,
    role,
    model,
    pod,
  }: { readonly release: string; readonly role: string; readonly model: string; readonly pod: object },
) {
  return createDeployment(api, {
    name: `${release}-${model}-${role}`,
    replicas: 0,
    labels: { [RELEASE_LABEL]: release, [ROLE_LABEL]: role },
    annotations: { [MODEL_ANNOTATION]: model },
    pod,
  });
}

/** A Service with an address of the caller's choice. */
export function createService(
  api: KubeApi,
  name: string,
  clusterIP: string,
  port: number,
  targetPort: number | string,
) {
  return create(api, `/api/v1/namespaces/${NAMESPACE}/services`, {
    apiVersion: "v1",
    kind: "Service",
    metadata: { name },
    spec: { clusterIP, selector: { app: name }, ports: [{ port, targetPort }] },
  });
}
