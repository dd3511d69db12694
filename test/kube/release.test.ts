import { mkdtemp } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test, vi } from "vitest";
import { type Answer, stream, unary } from "../support/client.ts";
import { waitFor } from "../support/system.ts";
import { describeOnCluster } from "./cluster-or-skip.ts";
import { deploymentPath, NAMESPACE } from "./manifests.ts";
import { GATEWAY_IP, GATEWAY_PORT, install } from "./release.ts";

/** A whole release on a cluster: two control planes, NATS, pools of workers that begin at zero. */

const RELEASE = "margay";
const IDLE_SECONDS = 6;
const WAIT_SECONDS = 25;
const WAIT_MS = 90_000;
/** Of one test: some wait for several things in turn. */
const TEST_MS = 180_000;
const PODS = `/api/v1/namespaces/${NAMESPACE}/pods`;

interface PodInfo {
  readonly name: string;
  readonly role: string;
  readonly model: string;
  readonly phase: string;
  readonly ready: boolean;
  readonly stopping: boolean;
  readonly createdMs: number;
}

interface WirePod {
  readonly metadata: {
    readonly name: string;
    readonly creationTimestamp: string;
    readonly deletionTimestamp?: string;
    readonly labels: Readonly<Record<string, string>>;
    readonly annotations?: Readonly<Record<string, string>>;
  };
  readonly status: {
    readonly phase: string;
    readonly conditions?: readonly { readonly type: string; readonly status: string }[];
  };
}

vi.setConfig({ testTimeout: TEST_MS, hookTimeout: TEST_MS });

describeOnCluster("a release on a cluster", (world) => {
  let url = "";

  const pods = async (selector: string): Promise<readonly PodInfo[]> => {
    const query = { labelSelector: selector };
    const { items } = (await world().api.call({ method: "GET", path: PODS, query })) as { items: readonly WirePod[] };
    return items.map(({ metadata, status }) => ({
      name: metadata.name,
      role: metadata.labels["margay.dev/role"] ?? "",
      model: metadata.annotations?.["margay.dev/model"] ?? "",
      phase: status.phase,
      ready: status.conditions?.some(({ type, status: is }) => type === "Ready" && is === "True") ?? false,
      stopping: metadata.deletionTimestamp !== undefined,
      createdMs: Date.parse(metadata.creationTimestamp),
    }));
  };
  const workers = (role?: string) => pods(role === undefined ? "margay.dev/role" : `margay.dev/role=${role}`);
  const controlPlanes = () => pods(`app=${RELEASE}-control-plane`);
  const readyWorker = async (role: string, but = ""): Promise<string | null> =>
    (await workers(role)).find((pod) => pod.ready && !pod.stopping && pod.name !== but)?.name ?? null;
  const logs = () => world().logs(/margay/);
  const nobody = () => waitFor("no worker pods", async () => ((await workers()).length === 0 ? true : null), WAIT_MS);
  const remove = (name: string, graceSeconds: number | null) =>
    world().api.call({
      method: "DELETE",
      path: `${PODS}/${name}`,
      body: graceSeconds === null ? {} : { gracePeriodSeconds: graceSeconds },
    });
  const completion = (i: number, tokens: number) => ({
    ...{ model: "nano", prompt: `Request number ${i % 16} says hello`, temperature: 0 },
    ...{ max_tokens: tokens, min_tokens: tokens },
  });

  beforeAll(async () => {
    const stateFolder = await mkdtemp(join(world().folder, "state-"));
    await install(world().api, {
      ...{ name: RELEASE, stateFolder, models: ["nano", "greedy"] },
      limits: { greedy: { "nvidia.com/gpu": "1" } },
      settings: {
        MARGAY_IDLE_SECONDS: String(IDLE_SECONDS),
        MARGAY_WAIT_SECONDS: String(WAIT_SECONDS),
        MARGAY_PREFILL: "0..2",
        MARGAY_DECODE: "0..2",
      },
    });
    url = await world().open(GATEWAY_IP, GATEWAY_PORT);
    await waitFor(
      "two control planes",
      async () => ((await controlPlanes()).filter((pod) => pod.ready).length === 2 ? true : null),
      WAIT_MS,
    ).catch(async (error: Error) => {
      throw new Error(`${error.message}\n${await logs()}`);
    });
  }, 180_000);

  describe("from zero", () => {
    test("the first request wakes a pod of each role together, is told so, and is answered", async () => {
      expect(await workers()).toEqual([]);
      const beganMs = performance.now();
      let firstMs = 0;
      const answer = await stream(url, "/v1/completions", completion(0, 20), {
        onChunk: () => {
          if (firstMs === 0) firstMs = performance.now() - beganMs;
        },
      });
      expect(answer.error, await logs()).toBeNull();
      expect(answer.usage?.completion_tokens).toBe(20);
      process.stderr.write(`from zero to the first token on the cluster: ${Math.round(firstMs)} ms\n`);
      const firstOf = async (role: string) => Math.min(...(await workers(role)).map((pod) => pod.createdMs));
      expect(Math.abs((await firstOf("prefill")) - (await firstOf("decode")))).toBeLessThanOrEqual(1_000);
    });

    test("after the idle time there are no pods; a burst of 50 wakes them again and none fails", async () => {
      await nobody();
      const answers = await Promise.all(
        Array.from({ length: 50 }, (_, i) => unary(url, "/v1/completions", completion(i, 12))),
      );
      expect(answers.map((one) => one.error).filter((error) => error !== null)).toEqual([]);
      expect(answers.map((one) => one.usage?.completion_tokens)).toEqual(answers.map(() => 12));
      await nobody();
    });
  });

  test("pods that find no node: their requests end with 503 and the reason, and other models go on", async () => {
    const [refused, served] = await Promise.all([
      unary(url, "/v1/completions", { ...completion(0, 12), model: "greedy" }),
      unary(url, "/v1/completions", completion(1, 12)),
    ]);
    expect(served.error).toBeNull();
    expect(refused.status).toBe(503);
    expect(refused.headers.get("retry-after")).toMatch(/^\d+$/);
    expect(refused.error?.code).toBe("capacity_timeout");
    expect(refused.error?.message).toMatch(/Unschedulable: .*nvidia\.com\/gpu/);
    const pool = JSON.stringify(
      await world().api.call({ method: "GET", path: deploymentPath(`${RELEASE}-greedy-decode`) }),
    );
    expect(pool).toMatch(/"reason":"Unschedulable"/);
  });

  describe("under streams", () => {
    const TOKENS = 240;
    const STREAMS = 8;
    let expected: readonly string[] = [];

    beforeAll(async () => {
      const texts: string[] = [];
      for (let i = 0; i < STREAMS; i++) {
        const answer = await stream(url, "/v1/completions", completion(i, TOKENS));
        expect(answer.usage?.completion_tokens, JSON.stringify(answer.error)).toBe(TOKENS);
        texts.push(answer.content);
      }
      expected = texts;
    });

    /** Streams all the time until `during` is over; all are answered in full, and with the text of a quiet hour. */
    async function whileStreaming(during: () => Promise<void>): Promise<readonly Answer[]> {
      let over = false;
      const ends: Answer[] = [];
      let chunks = 0;
      const client = async (i: number): Promise<void> => {
        while (!over)
          ends.push(await stream(url, "/v1/completions", completion(i, TOKENS), { onChunk: () => void chunks++ }));
      };
      const clients = Promise.all(Array.from({ length: STREAMS }, (_, i) => client(i)));
      clients.catch(() => {});
      try {
        await waitFor("streams", () => (chunks > STREAMS * 20 ? true : null), WAIT_MS);
        await during();
      } finally {
        over = true;
      }
      await clients;
      const failed = ends.filter((one) => one.error !== null || one.usage?.completion_tokens !== TOKENS);
      expect(
        failed.map((one) => one.error ?? one.usage),
        failed.length > 0 ? await logs() : "",
      ).toEqual([]);
      for (const one of ends) expect(expected).toContain(one.content);
      return ends;
    }
    const moved = (ends: readonly Answer[]) =>
      ends.filter((one) => one.comments.some((comment) => comment.includes("x-margay-attempts"))).length;

    test.each(["decode", "prefill"] as const)("a %s pod is deleted by force: no request fails", async (role) => {
      const ends = await whileStreaming(async () => {
        const victim = await waitFor("a worker", () => readyWorker(role), WAIT_MS);
        await remove(victim, 0);
        await waitFor("its successor", () => readyWorker(role, victim), WAIT_MS);
      });
      if (role === "decode") expect(moved(ends)).toBeGreaterThan(0);
    });

    test("the workers are rolled to a new version: no request fails", async () => {
      const before = new Set((await workers()).map((pod) => pod.name));
      await whileStreaming(async () => {
        for (const role of ["prefill", "decode"]) {
          await world().api.call({
            method: "PATCH",
            path: deploymentPath(`${RELEASE}-nano-${role}`),
            bodyType: "application/merge-patch+json",
            body: { spec: { template: { metadata: { annotations: { version: "2" } } } } },
          });
        }
        await waitFor(
          "new workers only",
          async () => {
            const now = (await workers()).filter((pod) => pod.model === "nano");
            const rolled = now.every((pod) => !before.has(pod.name)) && now.filter((pod) => pod.ready).length >= 2;
            return rolled ? true : null;
          },
          WAIT_MS,
        );
      });
    });

    test("the leading control plane is restarted: no request fails, and the other one leads", async () => {
      const holder = async () => {
        const path = `/apis/coordination.k8s.io/v1/namespaces/${NAMESPACE}/leases/${RELEASE}`;
        const lease = (await world().api.call({ method: "GET", path })) as {
          readonly spec: { readonly holderIdentity?: string };
        };
        return lease.spec.holderIdentity ?? "";
      };
      const leader = (await holder()).split("_")[0]!;
      expect((await controlPlanes()).map((pod) => pod.name)).toContain(leader);
      await whileStreaming(async () => {
        await remove(leader, null);
        const next = await waitFor(
          "another leader",
          async () => {
            const now = await holder();
            return now !== "" && !now.startsWith(leader) ? now : null;
          },
          WAIT_MS,
        );
        expect(next).not.toBe("");
        await waitFor(
          "two control planes",
          async () => {
            const now = (await controlPlanes()).filter((pod) => pod.ready && !pod.stopping);
            return now.length === 2 && now.every((pod) => pod.name !== leader) ? true : null;
          },
          WAIT_MS,
        );
      });
    });

    test("the API server is away: what runs serves on, and nothing is scaled down", async () => {
      const before = (await workers("decode")).map((pod) => pod.name).sort();
      await whileStreaming(async () => {
        await world().command("stop", "kube-apiserver");
        const awayMs = performance.now() + 12_000;
        while (performance.now() < awayMs) {
          const answer = await unary(url, "/v1/completions", completion(3, 12));
          expect(answer.error).toBeNull();
        }
        await world().command("start", "kube-apiserver");
      });
      expect((await workers("decode")).map((pod) => pod.name)).toEqual(expect.arrayContaining(before));
      expect(await logs()).toContain("the API server does not answer");
    });

    test("afterwards the pools go back to zero", async () => {
      await nobody();
    });
  });
});
