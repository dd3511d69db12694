import { beforeAll, expect, test, vi } from "vitest";
import { stream, unary } from "../support/client.ts";
import { describeOnCluster } from "./cluster-or-skip.ts";
import { deploymentPath, NAMESPACE } from "./manifests.ts";
import { RELEASE_TOOLS, Release } from "./release.ts";

/** A whole release, from helm's install to requests of several tenants: from zero, back to it, and without room. */

/** Promised of a request that finds no pod. */
const COLD_MS = 4_000;
/** Of one test: some wait for several things in turn. */
const TEST_MS = 300_000;
vi.setConfig({ testTimeout: TEST_MS, hookTimeout: TEST_MS });
const nano = { volume: { image: "models/nano" }, engine: { latentNormEps: "1e-6", threads: 1 } };

describeOnCluster(
  "a release on a cluster",
  (world) => {
    let release: Release;
    const completion = (i: number, tokens: number, model = "nano") => ({
      ...{ model, prompt: `Request number ${i % 16} says hello`, temperature: 0 },
      ...{ max_tokens: tokens, min_tokens: tokens },
    });
    const ask = (i: number, tokens: number) => unary(release.url, "/v1/completions", completion(i, tokens));

    beforeAll(async () => {
      // No node has so much memory.
      const nowhere = { resources: { requests: { memory: "900Ti" } } };
      release = await Release.install(world(), {
        models: { nano, greedy: { ...nano, prefill: nowhere, decode: nowhere } },
        scaling: { idleSeconds: 4 },
        drainSeconds: 10,
      });
    });

    test("is installed without workers that nobody asked for", () => release.nobody());

    test("the first request wakes a pod of each role together, is told so, and is answered", async () => {
      const beganMs = performance.now();
      let firstMs = 0;
      const answer = await stream(release.url, "/v1/completions", completion(0, 20), {
        onChunk: () => {
          if (firstMs === 0) firstMs = performance.now() - beganMs;
        },
      });
      expect(answer.error, await release.logs()).toBeNull();
      expect(answer.usage?.completion_tokens).toBe(20);
      expect(firstMs).toBeLessThan(3 * COLD_MS);
      process.stderr.write(`from zero to the first token on the cluster: ${Math.round(firstMs)} ms\n`);
      const firstOf = async (role: string) => Math.min(...(await release.workers(role)).map((pod) => pod.createdMs));
      expect(Math.abs((await firstOf("prefill")) - (await firstOf("decode")))).toBeLessThanOrEqual(1_000);
    });

    test("after the idle time there are no pods; a burst of 50 wakes them again and none fails", async () => {
      await release.nobody();
      const answers = await Promise.all(Array.from({ length: 50 }, (_, i) => ask(i, 12)));
      expect(answers.map((one) => one.error).filter((error) => error !== null)).toEqual([]);
      expect(answers.map((one) => one.usage?.completion_tokens)).toEqual(answers.map(() => 12));
    });

    test("pods that find no node: their requests end with 503 and the reason, and other models go on", async () => {
      const impatient = { headers: { "x-margay-max-wait": "8" } };
      const greedy = completion(0, 12, "greedy");
      const [refused, broken, served] = await Promise.all([
        unary(release.url, "/v1/completions", greedy, impatient.headers),
        stream(release.url, "/v1/completions", greedy, impatient),
        ask(1, 12),
      ]);
      expect(served.error).toBeNull();
      expect(refused.status).toBe(503);
      expect(refused.headers.get("retry-after")).toMatch(/^\d+$/);
      const reason = {
        code: "capacity_timeout",
        message: expect.stringMatching(/Unschedulable: .*Insufficient memory/),
      };
      expect(refused.error).toMatchObject(reason);
      expect(broken.status).toBe(200);
      expect(broken.error).toMatchObject({ ...reason, retry_after: expect.any(Number) });
      expect(broken.comments.join("\n")).toMatch(/margay waking prefill 0\/1 .*decode 0\/1 /);
      const told = async (path: string) => JSON.stringify(await world().api.call({ method: "GET", path }));
      expect(await told(deploymentPath(`${release.name}-greedy-decode`))).toMatch(/"reason":"Unschedulable"/);
      const events = await told(`/apis/events.k8s.io/v1/namespaces/${NAMESPACE}/events`);
      expect(events).toMatch(/"reason":"CapacityMissing"/);
    });
  },
  RELEASE_TOOLS,
);
