import { execFile } from "node:child_process";
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, test, vi } from "vitest";
import { unary } from "../support/client.ts";
import { chartFolder, kubernetesTool } from "../support/kubernetes-tools.ts";
import { waitFor } from "../support/system.ts";
import { describeOnCluster } from "./cluster-or-skip.ts";
import { create, NAMESPACE } from "./manifests.ts";

/** The chart as helm installs it, and the system that comes of it. */

const TEST_MS = 240_000;
vi.setConfig({ testTimeout: TEST_MS, hookTimeout: TEST_MS });
const RELEASE = "margay";
const IDLE_SECONDS = 5;

describeOnCluster("the chart on a cluster", (world) => {
  /** Runs helm to its end; not in one breath, for the way to the API server leads through this process. */
  const helm = async (...argv: readonly string[]): Promise<string> => {
    const tool = kubernetesTool("helm");
    if ("lack" in tool) throw new Error(tool.lack);
    const config = join(world().folder, "outside.kubeconfig");
    await writeFile(config, world().kubeconfig, { mode: 0o600 });
    const options = { timeout: TEST_MS, env: { ...process.env, KUBECONFIG: config, HOME: world().folder } };
    const done = await promisify(execFile)(tool.path, [...argv], options).catch(async (error: Error) => {
      throw new Error(`${error.message}\n${await world().logs(/margay/)}`);
    });
    return done.stdout;
  };
  const workers = async (): Promise<number> => {
    const query = { labelSelector: "margay.dev/role" };
    const path = `/api/v1/namespaces/${NAMESPACE}/pods`;
    const list = (await world().api.call({ method: "GET", path, query })) as { readonly items: readonly unknown[] };
    return list.items.length;
  };

  test("helm install, helm test, a chat request through the Service, and back to zero pods", async () => {
    // What a cluster's storage class would make.
    const disk = join(world().folder, "disk");
    await mkdir(disk);
    await chmod(disk, 0o777);
    await create(world().api, "/api/v1/persistentvolumes", {
      ...{ apiVersion: "v1", kind: "PersistentVolume", metadata: { name: "disk" } },
      spec: { capacity: { storage: "1Gi" }, accessModes: ["ReadWriteOnce"], hostPath: { path: disk } },
    });
    const values = [`scaling.idleSeconds=${IDLE_SECONDS}`, "models.nano.engine.threads=1", "drainSeconds=10"];
    await helm("install", RELEASE, chartFolder, "--set", values.join(","), "--wait", "--timeout", "120s");
    expect(await workers()).toBe(0);
    expect(await helm("test", RELEASE, "--timeout", "120s")).toMatch(/Phase:\s+Succeeded/);
    const path = `/api/v1/namespaces/${NAMESPACE}/services/${RELEASE}`;
    const service = (await world().api.call({ method: "GET", path })) as {
      readonly spec: { readonly clusterIP: string };
    };
    const url = await world().open(service.spec.clusterIP, 80);
    const messages = [{ role: "user", content: "What is the capital of Japan?" }];
    const answer = await unary(url, "/v1/chat/completions", {
      model: "nano",
      temperature: 0,
      max_tokens: 12,
      messages,
    });
    expect(answer.error).toBeNull();
    expect(answer.usage?.completion_tokens).toBeGreaterThan(0);
    await waitFor("no worker pods", async () => ((await workers()) === 0 ? true : null), 90_000);
  });
});
