import { spawn } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { describeOnCluster } from "../kube/cluster-or-skip.ts";
import type { KubeWorld } from "../kube/kube-world.ts";
import { kubernetesTool } from "../support/kubernetes-tools.ts";
import { EXAMPLES, rendered } from "./chart.ts";

const helm = kubernetesTool("helm");
const kubectl = kubernetesTool("kubectl");
const lack = "lack" in helm ? helm.lack : "lack" in kubectl ? kubectl.lack : null;
/** Kinds of other projects, which the cluster of the tests does not have. */
const FOREIGN = /^(leaderworkerset\.x-k8s\.io|monitoring\.coreos\.com)\//;
const WAIT_MS = 120_000;

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

describe.skipIf(lack !== null)(`the chart${lack === null ? "" : ` (not run: ${lack})`}`, () => {
  describeOnCluster("on a real API server", (world) => {
    test.each([...EXAMPLES])(
      "%s: every object of Kubernetes' own is taken",
      async (_, file) => {
        // A pod's account must be there already, and a namespace: both are made by the install itself.
        const objects = rendered(file, {}, "default").filter(
          ({ apiVersion, kind }) => !FOREIGN.test(apiVersion) && kind !== "Pod",
        );
        expect(await refusalOf(world(), objects)).toBeNull();
      },
      WAIT_MS,
    );

    test("and one that is wrong is not", async () => {
      const [first] = rendered(null, {}, "default").filter(({ kind }) => kind === "Deployment");
      expect(await refusalOf(world(), [{ ...first, spec: { ...first!.spec, replica: 1 } }])).toContain("replica");
    });
  });
});
