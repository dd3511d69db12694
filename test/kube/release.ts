import { BUS_ROLES } from "#protocol/permissions.ts";
import { systemRandom } from "#service/clock.ts";
import { type NatsCredentials, natsConfig } from "#service/nats-config.ts";
import type { KubeApi } from "../../control-plane/kube/kube-api.ts";
import { create, createDeployment, createPool, createService, NAMESPACE } from "./manifests.ts";

export interface ReleaseOptions {
  readonly name: string;
  /** Where packed weights are kept, on this machine. */
  readonly stateFolder: string;
  readonly models: readonly string[];
  /** Settings of the control planes. */
  readonly settings?: Readonly<Record<string, string>>;
  /** What the workers of a model need of their node besides: `{"nvidia.com/gpu": "1"}`. */
  readonly limits?: Readonly<Record<string, Readonly<Record<string, string>>>>;
}

/** Address of the gateway's Service. */
export const GATEWAY_IP = "10.96.0.100";
export const GATEWAY_PORT = 80;
const NATS_IP = "10.96.0.101";
const DRAIN_SECONDS = "45";
const GRACE_SECONDS = 60;

const podIp = { name: "POD_IP", valueFrom: { fieldRef: { fieldPath: "status.podIP" } } };
const variables = (values: Readonly<Record<string, string>>) =>
  Object.entries(values).map(([name, value]) => ({ name, value }));
const password = (release: string, role: string) => ({
  name: "MARGAY_NATS_PASSWORD",
  valueFrom: { secretKeyRef: { name: `${release}-nats`, key: role } },
});
const ready = (port: number) => ({
  httpGet: { path: "/readyz", port },
  periodSeconds: 1,
  timeoutSeconds: 5,
  failureThreshold: 5,
});

/** A release of Margay as plain objects: NATS, two control planes, and a pool of each role for each model. */
export async function install(api: KubeApi, options: ReleaseOptions): Promise<void> {
  await installNats(api, options.name);
  await installAccount(api, options.name);
  for (const model of options.models) {
    for (const role of ["prefill", "decode"] as const) await installPool(api, options, model, role);
  }
  await installControlPlane(api, options);
}

async function installNats(api: KubeApi, release: string): Promise<void> {
  const name = `${release}-nats`;
  const credentials = Object.fromEntries(BUS_ROLES.map((role) => [role, systemRandom.hex(12)])) as NatsCredentials;
  const folder = "/var/lib/nats";
  const config = natsConfig({ host: "0.0.0.0", port: 4222, portsFolder: folder, storeFolder: folder, credentials });
  await create(api, `/api/v1/namespaces/${NAMESPACE}/secrets`, {
    ...{ apiVersion: "v1", kind: "Secret", metadata: { name } },
    stringData: { ...credentials, "nats.conf": config },
  });
  await createDeployment(api, {
    ...{ name, replicas: 1 },
    pod: {
      containers: [
        {
          ...{ name: "nats", image: "nats:2.15", args: ["--config", "/etc/nats/nats.conf"] },
          volumeMounts: [
            { name: "config", mountPath: "/etc/nats" },
            { name: "data", mountPath: folder },
          ],
          readinessProbe: { tcpSocket: { port: 4222 }, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 10 },
        },
      ],
      volumes: [
        { name: "config", secret: { secretName: name } },
        { name: "data", emptyDir: {} },
      ],
    },
  });
  await createService(api, name, NATS_IP, 4222, 4222);
}

/** The rights that control-plane/kube/README.md lists, and no more. */
async function installAccount(api: KubeApi, name: string): Promise<void> {
  const metadata = { name };
  const rbac = { apiVersion: "rbac.authorization.k8s.io/v1" };
  await create(api, `/api/v1/namespaces/${NAMESPACE}/serviceaccounts`, {
    apiVersion: "v1",
    kind: "ServiceAccount",
    metadata,
  });
  await create(api, `/apis/${rbac.apiVersion}/namespaces/${NAMESPACE}/roles`, {
    ...rbac,
    ...{ kind: "Role", metadata },
    rules: [
      { apiGroups: [""], resources: ["pods"], verbs: ["get", "list", "watch", "delete"] },
      { apiGroups: ["apps"], resources: ["deployments"], verbs: ["get", "list", "watch"] },
      { apiGroups: ["apps"], resources: ["deployments/scale", "deployments/status"], verbs: ["patch"] },
      { apiGroups: ["coordination.k8s.io"], resources: ["leases"], verbs: ["get", "create", "update"] },
      { apiGroups: ["events.k8s.io"], resources: ["events"], verbs: ["get", "create", "patch"] },
    ],
  });
  await create(api, `/apis/${rbac.apiVersion}/namespaces/${NAMESPACE}/rolebindings`, {
    ...rbac,
    ...{ kind: "RoleBinding", metadata },
    subjects: [{ kind: "ServiceAccount", name, namespace: NAMESPACE }],
    roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "Role", name },
  });
}

function installPool(api: KubeApi, options: ReleaseOptions, model: string, role: "prefill" | "decode"): Promise<void> {
  const { name: release, stateFolder, limits = {} } = options;
  const settings = {
    ...{ MARGAY_NATS_URL: `nats://${release}-nats:4222`, MARGAY_NATS_USER: role },
    ...{ MARGAY_MODEL: "models/nano", MARGAY_MODEL_NAME: model, MARGAY_STATE_DIR: "/var/lib/margay" },
    ...{ MARGAY_BACKEND: "cpu", MARGAY_THREADS: "1", MARGAY_DETERMINISTIC: "1", MARGAY_LATENT_NORM_EPS: "1e-6" },
    ...{ MARGAY_HEALTH_PORT: "8080", MARGAY_KV_PORT: "7000", MARGAY_KV_TRANSPORT: "tcp" },
    ...{ MARGAY_HEALTH_HOST: "$(POD_IP)", MARGAY_KV_HOST: "$(POD_IP)", MARGAY_DRAIN_SECONDS: DRAIN_SECONDS },
  };
  return createPool(api, {
    ...{ release, role, model },
    pod: {
      terminationGracePeriodSeconds: GRACE_SECONDS,
      automountServiceAccountToken: false,
      containers: [
        {
          ...{ name: "worker", image: "margay", command: ["node", `${role}-node/main.ts`] },
          terminationMessagePolicy: "FallbackToLogsOnError",
          env: [
            podIp,
            { name: "MARGAY_WORKER_ID", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } },
            password(release, role),
            ...variables(settings),
          ],
          ...{ readinessProbe: ready(8080), resources: { limits: limits[model] ?? {} } },
          volumeMounts: [{ name: "state", mountPath: "/var/lib/margay" }],
        },
      ],
      volumes: [{ name: "state", hostPath: { path: stateFolder } }],
    },
  });
}

async function installControlPlane(
  api: KubeApi,
  { name: release, models, settings = {} }: ReleaseOptions,
): Promise<void> {
  const name = `${release}-control-plane`;
  const all = {
    ...{ MARGAY_TARGET: "kube", MARGAY_KUBE_RELEASE: release, MARGAY_HOST: "$(POD_IP)", MARGAY_PORT: "8000" },
    ...{ MARGAY_NATS_URL: `nats://${release}-nats:4222`, MARGAY_NATS_USER: "control-plane" },
    ...{ MARGAY_MODEL: models.map((model) => `${model}=models/nano`).join(","), MARGAY_STATE_DIR: "/tmp/margay" },
    ...{ MARGAY_DRAIN_SECONDS: DRAIN_SECONDS },
    ...settings,
  };
  await createDeployment(api, {
    ...{ name, replicas: 2 },
    pod: {
      ...{ serviceAccountName: release, terminationGracePeriodSeconds: GRACE_SECONDS },
      containers: [
        {
          ...{ name: "control-plane", image: "margay", command: ["node", "control-plane/main.ts"] },
          terminationMessagePolicy: "FallbackToLogsOnError",
          env: [
            podIp,
            { name: "MARGAY_POD_NAME", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } },
            password(release, "control-plane"),
            ...variables(all),
          ],
          ports: [{ name: "http", containerPort: 8000 }],
          readinessProbe: ready(8000),
          // Its Service stops sending before it stops listening.
          lifecycle: { preStop: { sleep: { seconds: 2 } } },
        },
      ],
    },
  });
  await createService(api, name, GATEWAY_IP, GATEWAY_PORT, "http");
}
