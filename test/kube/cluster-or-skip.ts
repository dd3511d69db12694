import { afterAll, beforeAll, describe } from "vitest";
import { whyNoCluster } from "./cluster-program.ts";
import { KubeWorld } from "./kube-world.ts";

const why = whyNoCluster();
/** The first build of the control plane takes minutes; a world then starts in seconds. */
const START_MS = 45 * 60_000;

/** Tests on a cluster that is there for all of them together; where there can be none, said and skipped. */
export function describeOnCluster(name: string, tests: (world: () => KubeWorld) => void): void {
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
