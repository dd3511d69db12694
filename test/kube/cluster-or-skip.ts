import { afterAll, beforeAll, describe } from "vitest";
import { kubernetesTool, type Tool } from "../support/kubernetes-tools.ts";
import { whyNoCluster } from "./cluster-program.ts";
import { KubeWorld } from "./kube-world.ts";

const noCluster = whyNoCluster();
/** The first build of the control plane takes minutes; a world then starts in seconds. */
const START_MS = 45 * 60_000;

/** Tests on a cluster that is there for all of them together; where it or a tool is not to be had, said and skipped. */
export function describeOnCluster(
  name: string,
  tests: (world: () => KubeWorld) => void,
  tools: readonly Tool[] = [],
): void {
  const why = noCluster ?? lackOf(tools);
  if (why !== null) process.stderr.write(`skipped: ${name}: ${why}\n`);
  describe.skipIf(why !== null)(name, () => {
    let world: KubeWorld | null = null;
    beforeAll(async () => {
      world = await KubeWorld.start();
    }, START_MS);
    afterAll(async () => world?.[Symbol.asyncDispose]());
    tests(() => world!);
  });
}

function lackOf(tools: readonly Tool[]): string | null {
  const found = tools.map(kubernetesTool).find((tool) => "lack" in tool);
  return found === undefined || "path" in found ? null : found.lack;
}
