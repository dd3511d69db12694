import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { poolsPath } from "../../control-plane/kube/worker-pool.ts";
import { unary } from "../support/client.ts";
import { waitFor } from "../support/system.ts";
import { describeOnCluster } from "./cluster-or-skip.ts";
import { definition, LeaderWorkerSets } from "./leader-worker-sets.ts";
import { NAMESPACE } from "./manifests.ts";
import { RELEASE_TOOLS, Release, WAIT_MS } from "./release.ts";

/** A release whose decode workers are groups of two ranks, each a pod of a LeaderWorkerSet. */

const TEST_MS = 300_000;
vi.setConfig({ testTimeout: TEST_MS, hookTimeout: TEST_MS });
const found = definition();
if ("lack" in found) process.stderr.write(`skipped: groups of pods: ${found.lack}\n`);

describe.skipIf("lack" in found)("groups of pods", () => {
  describeOnCluster(
    "on a cluster",
    (world) => {
      let release: Release;
      let sets: LeaderWorkerSets;
      const ask = () =>
        unary(release.url, "/v1/completions", {
          ...{ model: "nano", prompt: "Say hello", temperature: 0, max_tokens: 24, min_tokens: 24 },
        });

      beforeAll(async () => {
        if ("path" in found) sets = await LeaderWorkerSets.start(world().api, found.path);
        release = await Release.install(world(), {
          models: { nano: { engine: { threads: 1 } } },
          ranks: { decode: 2 },
          scaling: { decode: { max: 1 }, idleSeconds: 4 },
          drainSeconds: 10,
        });
      });
      afterAll(() => sets?.stop());

      test("a request wakes a whole group; a rank that is lost is replaced alone; all go when they are idle", async () => {
        await release.nobody();
        const first = await ask();
        expect(first.error, await release.logs()).toBeNull();
        expect(first.usage?.completion_tokens).toBe(24);
        const name = `${release.name}-nano-decode`;
        const ranks = async () => (await release.workers("decode")).map((pod) => pod.name).sort();
        expect(await ranks()).toEqual([`${name}-0`, `${name}-0-1`]);
        const path = `${poolsPath(NAMESPACE, "LeaderWorkerSet")}/${name}`;
        expect(await world().api.call({ method: "GET", path })).toMatchObject({ spec: { replicas: 1 } });

        const uid = async (pod: string) =>
          (await release.workers("decode")).find((one) => one.name === pod)?.uid ?? null;
        const [leader, lost] = [await uid(`${name}-0`), await uid(`${name}-0-1`)];
        await release.remove(`${name}-0-1`, 0);
        const replaced = async () => {
          const now = await uid(`${name}-0-1`);
          return now !== null && now !== lost ? now : null;
        };
        await waitFor("another pod of the rank", replaced, WAIT_MS);
        expect((await ask()).error).toBeNull();
        expect(await uid(`${name}-0`)).toBe(leader);
        await release.nobody();
      });
    },
    RELEASE_TOOLS,
  );
});
