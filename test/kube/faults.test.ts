import { beforeAll, expect, test, vi } from "vitest";
import { type Answer, stream, unary } from "../support/client.ts";
import { waitFor } from "../support/system.ts";
import { describeOnCluster } from "./cluster-or-skip.ts";
import { NODES } from "./kube-world.ts";
import { type PodInfo, RELEASE_TOOLS, Release, WAIT_MS } from "./release.ts";

/** A release under steady streams, while pods, nodes, versions and the cluster's own control plane come and go. */

const TEST_MS = 300_000;
vi.setConfig({ testTimeout: TEST_MS, hookTimeout: TEST_MS });
const TOKENS = 240;
const STREAMS = 8;
const AWAY_MS = 60_000;

describeOnCluster(
  "under streams no request fails",
  (world) => {
    let release: Release;
    let expected: readonly string[] = [];
    const completion = (i: number) => ({
      ...{ model: "nano", prompt: `Request number ${i} says hello`, temperature: 0 },
      ...{ max_tokens: TOKENS, min_tokens: TOKENS },
    });

    beforeAll(async () => {
      release = await Release.install(world(), {
        models: { nano: { engine: { threads: 1, deterministic: true } } },
        scaling: { idleSeconds: 20 },
        drainSeconds: 20,
      });
      expect(await release.helm("test", release.name, "--timeout", "120s")).toMatch(/Phase:\s+Succeeded/);
      const texts: string[] = [];
      for (let i = 0; i < STREAMS; i++) {
        const answer = await stream(release.url, "/v1/completions", completion(i));
        expect(answer.usage?.completion_tokens, JSON.stringify(answer.error)).toBe(TOKENS);
        texts.push(answer.content);
      }
      expected = texts;
    });

    /** Streams all the time until `during` is over; all are answered in full. */
    async function whileStreaming(during: () => Promise<void>): Promise<readonly Answer[]> {
      let over = false;
      const ends: Answer[] = [];
      let chunks = 0;
      const onChunk = () => void chunks++;
      const client = async (i: number): Promise<void> => {
        while (!over) ends.push(await stream(release.url, "/v1/completions", completion(i), { onChunk }));
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
      const said = failed.map((one) => one.error ?? one.usage);
      expect(said, failed.length > 0 ? await release.logs() : "").toEqual([]);
      return ends;
    }
    /** With the text of a quiet hour. */
    const expectSameTexts = (ends: readonly Answer[]) => {
      for (const one of ends) expect(expected).toContain(one.content);
    };
    const moved = (ends: readonly Answer[]) =>
      ends.filter((one) => one.comments.some((comment) => comment.includes("x-margay-attempts"))).length;
    const workersAre = (what: string, right: (pods: readonly PodInfo[]) => boolean) =>
      waitFor(
        what,
        async () => {
          const pods = await release.workers();
          const ready = (role: string) => pods.some((pod) => pod.role === role && pod.ready && !pod.stopping);
          return ready("prefill") && ready("decode") && right(pods) ? true : null;
        },
        WAIT_MS,
      );

    test.each(["decode", "prefill"] as const)("when a %s pod is deleted by force", async (role) => {
      const ends = await whileStreaming(async () => {
        const victim = await release.readyWorker(role);
        await release.remove(victim.name, 0);
        await release.readyWorker(role, victim.name);
      });
      expectSameTexts(ends);
      if (role === "decode") expect(moved(ends)).toBeGreaterThan(0);
    });

    test("when the workers are rolled to a new version, and in the middle of it rolled back", async () => {
      const versioned = (version: string) => {
        const placed = { podAnnotations: { version } };
        return { models: { nano: { prefill: placed, decode: placed } } };
      };
      const isNew = (pod: PodInfo) => pod.annotations.version === "2";
      const ends = await whileStreaming(async () => {
        await release.upgrade(versioned("2"));
        await workersAre("new workers only", (pods) => pods.every(isNew));
        await release.upgrade(versioned("3"));
        await waitFor(
          "a newer worker",
          async () => (await release.workers()).find((pod) => pod.annotations.version === "3" && pod.ready) ?? null,
          WAIT_MS,
        );
        await release.helm("rollback", release.name, "2");
        await workersAre("the workers of before", (pods) => pods.every(isNew));
      });
      expectSameTexts(ends);
    });

    test("when the new version cannot exchange KV with the old one; no request is served by both", async () => {
      const placed = { podAnnotations: { version: "other" } };
      const engine = { threads: 1, deterministic: false };
      const versions = new Map<string, string>();
      const isNew = (pod: PodInfo) => pod.annotations.version === "other";
      const ends = await whileStreaming(async () => {
        await release.upgrade({ models: { nano: { engine, prefill: placed, decode: placed } } });
        await workersAre("new workers only", (pods) => {
          for (const pod of pods) versions.set(pod.name, isNew(pod) ? "new" : "old");
          return pods.every(isNew);
        });
      });
      const pairs = ends.map(({ comments }) =>
        ["prefill", "decode"].map((role) => {
          const worker = new RegExp(`x-margay-${role}: ([^ ]+)`).exec(comments.join("\n"))?.[1] ?? "";
          return versions.get(worker);
        }),
      );
      expect([...new Set(pairs.map((pair) => pair.join(" with ")))].sort()).toEqual(["new with new", "old with old"]);
      await release.helm("rollback", release.name);
      await workersAre("the old workers", (pods) => !pods.some(isNew));
    });

    test("when the nodes are drained, one after the other", async () => {
      const ends = await whileStreaming(async () => {
        for (const node of NODES) {
          const options = ["--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"];
          await release.kubectl("drain", node, ...options);
          await workersAre(`workers elsewhere than on ${node}`, (pods) => pods.every((pod) => pod.node !== node));
          await release.kubectl("uncordon", node);
        }
      });
      expectSameTexts(ends);
    });

    test("when the leading control plane is restarted; the other one leads", async () => {
      const ends = await whileStreaming(async () => {
        const leader = await release.leader();
        expect((await release.controlPlanes()).map((pod) => pod.name)).toContain(leader);
        await release.remove(leader);
        const next = async () => {
          const now = await release.leader();
          return now === "" || now === leader ? null : now;
        };
        await waitFor("another leader", next, WAIT_MS);
        await release.settled((pod) => pod.name !== leader);
      });
      expectSameTexts(ends);
    });

    test("when the API server is away; what runs serves on, and nothing is scaled down", async () => {
      const before = (await release.workers()).map((pod) => pod.name);
      const ends = await whileStreaming(async () => {
        await world().command("stop", "kube-apiserver");
        const awayMs = performance.now() + AWAY_MS;
        while (performance.now() < awayMs) {
          const answer = await unary(release.url, "/v1/completions", completion(3));
          expect(answer.error).toBeNull();
        }
        await world().command("start", "kube-apiserver");
      });
      expectSameTexts(ends);
      expect((await release.workers()).map((pod) => pod.name)).toEqual(expect.arrayContaining(before));
      expect(await release.logs()).toContain("the API server does not answer");
    });
  },
  RELEASE_TOOLS,
);
