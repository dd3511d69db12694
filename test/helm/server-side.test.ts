import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { load } from "js-yaml";
import { beforeAll, describe, expect, test, vi } from "vitest";
import { systemClock } from "#service/clock.ts";
import type { KubeApi } from "../../control-plane/kube/kube-api.ts";
import { connectKube } from "../../control-plane/kube/kube-client.ts";
import { poolsPath } from "../../control-plane/kube/worker-pool.ts";
import { describeOnCluster } from "../kube/cluster-or-skip.ts";
import type { KubeWorld } from "../kube/kube-world.ts";
import { definition } from "../kube/leader-worker-sets.ts";
import { kubernetesTool } from "../support/kubernetes-tools.ts";
import { waitFor } from "../support/system.ts";
import { EXAMPLES, type KubeObject, rendered } from "./chart.ts";
import { PROMETHEUS_KINDS } from "./prometheus-kinds.ts";

const helm = kubernetesTool("helm");
const kubectl = kubernetesTool("kubectl");
const lack = "lack" in helm ? helm.lack : "lack" in kubectl ? kubectl.lack : null;
const groups = definition();
if ("lack" in groups) process.stderr.write(`not shown to an API server: groups of pods: ${groups.lack}\n`);
const DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WAIT_MS = 120_000;
vi.setConfig({ testTimeout: 2 * WAIT_MS, hookTimeout: 2 * WAIT_MS });

/** Teaches the API server the kinds of other projects that the chart uses. */
async function teach({ api }: KubeWorld): Promise<void> {
  const kinds = new Map(PROMETHEUS_KINDS);
  if ("path" in groups)
    kinds.set(poolsPath("default", "LeaderWorkerSet"), load(readFileSync(groups.path, "utf8")) as object);
  for (const body of kinds.values()) await api.call({ method: "POST", path: DEFINITIONS, body });
  for (const path of kinds.keys()) {
    await waitFor(path, () => api.call({ method: "GET", path }).catch(() => null), WAIT_MS);
  }
}

/** Has the API server look at the objects as if they were made; what kubectl says where one is refused. */
async function refusalOf(world: KubeWorld, objects: readonly object[]): Promise<string | null> {
  if ("lack" in kubectl) return kubectl.lack;
  const kubeconfig = join(world.folder, "kubeconfig");
  await writeFile(kubeconfig, world.kubeconfig);
  const args = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
  const child = spawn(kubectl.path, args, {
    env: { PATH: process.env.PATH, HOME: world.folder, KUBECONFIG: kubeconfig },
    timeout: WAIT_MS,
  });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (bytes: Buffer) => {
      said += bytes.toString();
    });
  }
  child.stdin.on("error", () => {});
  child.stdin.end(JSON.stringify({ apiVersion: "v1", kind: "List", items: objects }));
  const code = await new Promise<number | null>((resolve) => child.once("close", resolve));
  return code === 0 ? null : said;
}

interface Rule {
  readonly apiGroups: readonly string[];
  readonly resources: readonly string[];
  readonly verbs: readonly string[];
}

/** The API server as one of the namespace's accounts. */
async function as(world: KubeWorld, account: string): Promise<KubeApi> {
  const asked = (await world.api.call({
    method: "POST",
    path: `/api/v1/namespaces/default/serviceaccounts/${account}/token`,
    body: { apiVersion: "authentication.k8s.io/v1", kind: "TokenRequest", spec: {} },
  })) as { readonly status: { readonly token: string } };
  const config = JSON.parse(world.kubeconfig) as { users: { user: { token: string } }[] };
  config.users[0]!.user.token = asked.status.token;
  return connectKube(JSON.stringify(config), systemClock).api;
}

/** Everything that the asking account may do in a namespace. The API server tells it in no order. */
async function rulesOf(api: KubeApi, namespace: string): Promise<readonly Rule[]> {
  const kind = "SelfSubjectRulesReview";
  const told = (await api.call({
    method: "POST",
    path: `/apis/authorization.k8s.io/v1/${kind.toLowerCase()}s`,
    body: { apiVersion: "authorization.k8s.io/v1", kind, spec: { namespace } },
  })) as { readonly status: { readonly resourceRules: readonly Rule[]; readonly incomplete: boolean } };
  return told.status.resourceRules.toSorted((a, b) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1));
}

describe.skipIf(lack !== null)(`the chart${lack === null ? "" : ` (not run: ${lack})`}`, () => {
  describeOnCluster("on a real API server", (world) => {
    beforeAll(() => teach(world()));

    test.each([...EXAMPLES])("%s: every object is taken", async (_, file) => {
      // A pod's account must be there already, and a namespace: both are made by the install itself.
      const objects = rendered(file, {}, "default").filter(
        ({ kind }) => kind !== "Pod" && ("path" in groups || kind !== "LeaderWorkerSet"),
      );
      expect(await refusalOf(world(), objects)).toBeNull();
    });

    describe("what its accounts may do", () => {
      const accounts: Record<string, readonly Rule[]> = {};

      beforeAll(async () => {
        const { api } = world();
        const collections: Readonly<Record<string, string>> = {
          ServiceAccount: "/api/v1/namespaces/default/serviceaccounts",
          Role: "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
          RoleBinding: "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
        };
        for (const object of rendered(null, {}, "default")) {
          const path = collections[object.kind];
          if (path !== undefined) await api.call({ method: "POST", path, body: object });
        }
        for (const name of ["default", "margay-worker"])
          accounts[name] = await rulesOf(await as(world(), name), "default");
        const controlPlane = await as(world(), "margay-control-plane");
        const named = async () => {
          // The API server hears of a role as everybody does: a moment after it was made.
          const rules = await rulesOf(controlPlane, "default");
          return rules.length > accounts.default!.length ? rules : null;
        };
        accounts["margay-control-plane"] = await waitFor("the role to hold", named, WAIT_MS);
      });

      test("a worker's: nothing that an account without any role may not", () => {
        expect(accounts["margay-worker"]).toEqual(accounts.default);
      });

      test("the control plane's: what its room asks for, in its own namespace, and no more", async () => {
        const own = accounts["margay-control-plane"]!.filter(
          (rule) => !accounts.default!.some((other) => JSON.stringify(other) === JSON.stringify(rule)),
        );
        const allowed = own.flatMap(({ apiGroups, resources, verbs }) =>
          resources.map((resource) => `${apiGroups.join()}/${resource}: ${verbs.join(" ")}`),
        );
        expect(allowed.sort()).toEqual([
          "/pods: get list watch delete",
          "apps/deployments/scale: patch",
          "apps/deployments/status: patch",
          "apps/deployments: get list watch",
          "coordination.k8s.io/leases: get create update",
          "events.k8s.io/events: get create patch",
        ]);
        const elsewhere = await as(world(), "margay-control-plane");
        expect(await rulesOf(elsewhere, "kube-system")).toEqual(
          await rulesOf(await as(world(), "default"), "kube-system"),
        );
      });

      test("the API server holds them to it", async () => {
        const [worker, control] = [await as(world(), "margay-worker"), await as(world(), "margay-control-plane")];
        const pods = "/api/v1/namespaces/default/pods";
        await expect(worker.call({ method: "GET", path: pods })).rejects.toThrow(/cannot list resource "pods"/);
        await expect(control.call({ method: "GET", path: pods })).resolves.toBeDefined();
        for (const path of [
          "/api/v1/namespaces/default/secrets",
          "/api/v1/nodes",
          "/api/v1/namespaces/kube-system/pods",
        ]) {
          await expect(control.call({ method: "GET", path }), path).rejects.toThrow(/cannot list resource/);
        }
        const pod = {
          apiVersion: "v1",
          kind: "Pod",
          metadata: { name: "p" },
          spec: { containers: [{ name: "c", image: "i" }] },
        };
        await expect(control.call({ method: "POST", path: pods, body: pod })).rejects.toThrow(/cannot create resource/);
      });
    });

    test.each<[kind: string, mistake: (object: KubeObject) => object, said: string]>([
      ["Deployment", ({ spec, ...rest }) => ({ ...rest, spec: { ...spec, replica: 1 } }), "replica"],
      ["ServiceMonitor", ({ spec, ...rest }) => ({ ...rest, spec: { ...spec, endpoint: [] } }), "endpoint"],
      [
        "PodMonitor",
        ({ spec, ...rest }) => ({ ...rest, spec: { ...spec, podMetricsEndpoints: [{ interval: "15 s" }] } }),
        "interval",
      ],
      [
        "PrometheusRule",
        ({ spec: _, ...rest }) => ({ ...rest, spec: { groups: [{ name: "g", rules: [{ alert: "a" }] }] } }),
        "expr",
      ],
      ...(("path" in groups
        ? [["LeaderWorkerSet", ({ spec, ...rest }) => ({ ...rest, spec: { ...spec, size: 2 } }), "size"]]
        : []) as [string, (object: KubeObject) => object, string][]),
    ])("a %s that is wrong is not", async (kind, mistake, said) => {
      const all = [...EXAMPLES.values()].flatMap((file) => rendered(file, {}, "default"));
      const first = all.find((object) => object.kind === kind)!;
      expect(await refusalOf(world(), [mistake(first)])).toContain(said);
    });
  });
});
