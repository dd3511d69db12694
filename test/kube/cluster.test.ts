import { mkdtemp, readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import type { ModelName } from "#protocol/ids.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { type Logger, silentLogger } from "#service/logger.ts";
import { createMetrics } from "#service/metrics.ts";
import { connectKube } from "../../control-plane/kube/kube-client.ts";
import { LeaderLease } from "../../control-plane/kube/leader-lease.ts";
import { WatchedList } from "../../control-plane/kube/watched-list.ts";
import { KubeTarget } from "../../control-plane/scaling/targets/kube.ts";
import { waitFor } from "../support/system.ts";
import { describeOnCluster } from "./cluster-or-skip.ts";
import { create, createDeployment, createPool, createService, deploymentPath, NAMESPACE } from "./manifests.ts";

/** The kube room against a real API server, and the nodes of the tests themselves. */

const WAIT_MS = 40_000;
const time = { clock: systemClock, random: systemRandom, logger: silentLogger };
const NANO = "nano" as ModelName;
const Named = z.object({ metadata: z.object({ name: z.string() }) }).transform(({ metadata }) => metadata.name);
const PODS = `/api/v1/namespaces/${NAMESPACE}/pods`;
const CONFIG_MAPS = `/api/v1/namespaces/${NAMESPACE}/configmaps`;
const configMap = (name: string) => ({ apiVersion: "v1", kind: "ConfigMap", metadata: { name } });
const sleeper = { name: "worker", image: "margay", command: ["sleep", "1000"] };

/** A logger that keeps what it is told. */
function listeningLogger(): { readonly logger: Logger; readonly said: string[] } {
  const said: string[] = [];
  const keep = (_fields: object, text: string): void => void said.push(text);
  return { said, logger: { ...silentLogger, info: keep, warn: keep, error: keep } };
}

describeOnCluster("on a cluster", (world) => {
  describe("a node of the tests", () => {
    test("runs a Deployment's pods, and a Service reaches those that are ready, each in turn", async () => {
      const { api } = world();
      const serve = "require('http').createServer((q, r) => r.end(process.env.POD)).listen(8080, process.env.IP)";
      await createDeployment(api, {
        ...{ name: "web", replicas: 2 },
        pod: {
          terminationGracePeriodSeconds: 1,
          containers: [
            {
              ...{ name: "web", image: "margay", command: ["node", "-e", serve] },
              env: [
                { name: "POD", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } },
                { name: "IP", valueFrom: { fieldRef: { fieldPath: "status.podIP" } } },
              ],
              ports: [{ containerPort: 8080, name: "http" }],
              readinessProbe: { httpGet: { port: "http" }, periodSeconds: 1 },
            },
          ],
        },
      });
      await createService(api, "web", "10.96.0.80", 80, "http");
      const url = await world().open("10.96.0.80", 80);
      const seen = new Set<string>();
      await waitFor(
        "answers of both pods",
        async () => {
          const answer = await fetch(url, { headers: { connection: "close" } }).catch(() => null);
          if (answer !== null) seen.add(await answer.text());
          return seen.size === 2 ? seen : null;
        },
        WAIT_MS,
      );
      for (const name of seen) expect(name).toMatch(/^web-/);
    });

    test("ends a pod by its preStop, then SIGTERM, and takes it out of the API", async () => {
      const { api, folder } = world();
      const notes = await mkdtemp(join(folder, "notes-"));
      const body = {
        ...{ apiVersion: "v1", kind: "Pod", metadata: { name: "brief" } },
        spec: {
          containers: [
            {
              ...{ name: "brief", image: "margay" },
              command: [
                "sh",
                "-c",
                "trap 'echo term >> /notes/said; exit 0' TERM; echo up >> /notes/said; while :; do sleep 0.1; done",
              ],
              lifecycle: { preStop: { exec: { command: ["sh", "-c", "echo stop >> /notes/said"] } } },
              volumeMounts: [{ name: "notes", mountPath: "/notes" }],
            },
          ],
          volumes: [{ name: "notes", hostPath: { path: notes } }],
        },
      };
      await create(api, PODS, body);
      const said = () => readFile(join(notes, "said"), "utf8").catch(() => "");
      await waitFor("the pod to run", async () => ((await said()) === "up\n" ? true : null), WAIT_MS);
      await api.call({ method: "DELETE", path: `${PODS}/brief` });
      const isGone = () =>
        api.call({ method: "GET", path: `${PODS}/brief` }).then(
          () => null,
          () => true,
        );
      await waitFor("the pod to be gone", isGone, WAIT_MS);
      expect(await said()).toBe("up\nstop\nterm\n");
    });
  });

  describe("the kube room", () => {
    test("a watched list follows changes; while the API server is away it keeps what it knew and says so", async () => {
      const { logger, said } = listeningLogger();
      const { api } = world();
      const list = new WatchedList({ api, ...time, logger, path: CONFIG_MAPS, item: Named, onChange: () => {} });
      const names = () =>
        [...list.items.values()]
          .filter((name) => name.startsWith("note"))
          .sort()
          .join();
      const until = (what: string) => waitFor(what, () => (names() === what ? true : null), WAIT_MS, names);
      expect(list.awayMs).not.toBeNull();
      list.start();
      await create(api, CONFIG_MAPS, configMap("note-1"));
      await until("note-1");
      await create(api, CONFIG_MAPS, configMap("note-2"));
      await until("note-1,note-2");
      await api.call({ method: "DELETE", path: `${CONFIG_MAPS}/note-1` });
      await until("note-2");
      expect(list.awayMs).toBeNull();
      await world().command("stop", "kube-apiserver");
      await waitFor("the loss to be noticed", () => list.awayMs, WAIT_MS);
      expect(names()).toBe("note-2");
      await world().command("start", "kube-apiserver");
      await create(api, CONFIG_MAPS, configMap("note-3"));
      await until("note-2,note-3");
      expect(list.awayMs).toBeNull();
      expect(said).toEqual([
        "the API server does not answer; what was known of it is kept",
        "the API server answers again",
      ]);
      list.stop();
    });

    test("of two that want to lead one does; the other follows at once when the lease is released, and later when it is not renewed", async () => {
      const timing = { leaseMs: 4_000, renewMs: 2_500, retryMs: 400 };
      const { api } = world();
      const overlaps: number[] = [];
      let reachable = true;
      const contender = (identity: string, own = api): LeaderLease =>
        new LeaderLease({
          ...{ api: own, ...time, namespace: NAMESPACE, name: "lead", identity, timing },
          onChange: () => overlaps.push([a, b, c].filter((one) => one.leads).length),
        });
      const a = contender("a");
      const b = contender("b", {
        ...api,
        call: (call) => (reachable ? api.call(call) : Promise.reject(new Error("not reachable"))),
      });
      const c = contender("c");
      const leads = (one: LeaderLease) => waitFor("a leader", () => (one.leads ? true : null), WAIT_MS);
      a.start();
      await leads(a);
      b.start();
      await waitFor("b to know its leader", () => (b.holder === "a" ? true : null), WAIT_MS);
      await a.release();
      expect(a.leads).toBe(false);
      await leads(b);
      c.start();
      reachable = false;
      await leads(c);
      expect(b.leads).toBe(false);
      expect(Math.max(...overlaps)).toBe(1);
      await Promise.all([b.release(), c.release()]);
    });

    const target = (ended: string[], api = world().api) =>
      new KubeTarget({
        ...{ api, ...time, metrics: createMetrics({ processMetrics: false }) },
        ...{ namespace: NAMESPACE, release: "r", instance: "test", leads: () => true },
        ranks: { prefill: 1, decode: 1 },
        onEnd: (rankId) => void ended.push(rankId),
      });

    test("a pool is scaled; a pod that is deleted by force ends at once; one without a node is a condition, an event and a reason", async () => {
      const { api } = world();
      const greedy = { ...sleeper, resources: { limits: { "nvidia.com/gpu": "1" } } };
      await createPool(api, { release: "r", role: "decode", model: "nano", pod: { containers: [sleeper] } });
      await createPool(api, { release: "r", role: "prefill", model: "nano", pod: { containers: [greedy] } });
      const ended: string[] = [];
      const kube = target(ended);
      expect(kube.wanted(NANO, "decode")).toBeNull();
      kube.start();
      await waitFor("the pools", () => kube.wanted(NANO, "decode"), WAIT_MS);
      expect(kube.wanted(NANO, "decode")).toBe(0);
      kube.scale(NANO, "decode", 1);
      kube.scale(NANO, "prefill", 1);
      expect(kube.wanted(NANO, "decode")).toBe(1);
      const runs = (but = "") =>
        kube.workers().find((one) => one.role === "decode" && one.runs && one.workerId !== but) ?? null;
      const first = await waitFor("a worker", () => runs(), WAIT_MS);
      const body = { gracePeriodSeconds: 0 };
      await api.call({ method: "DELETE", path: `${PODS}/${first.workerId}`, body });
      await waitFor("its end", () => (ended.includes(first.ranks[0]!.rankId) ? true : null), WAIT_MS);
      await waitFor("its successor", () => runs(first.workerId), WAIT_MS);

      expect(kube.workers().find((one) => one.role === "prefill")).toMatchObject({ runs: false, stopping: false });
      const Conditions = z.object({
        status: z.object({
          conditions: z.array(z.looseObject({ type: z.string(), status: z.string(), message: z.string() })),
        }),
      });
      const condition = async (role: string) => {
        const read = await api.call({ method: "GET", path: deploymentPath(`r-nano-${role}`) });
        return Conditions.parse(read).status.conditions.find(({ type }) => type === "CapacityAvailable");
      };
      const told = await waitFor("the condition", async () => (await condition("prefill")) ?? null, WAIT_MS);
      expect(told).toMatchObject({
        status: "False",
        reason: "Unschedulable",
        message: expect.stringContaining("nvidia.com/gpu"),
      });
      expect(await condition("decode")).toBeUndefined();
      expect(kube.lastFailure(NANO)).toEqual({
        sentence: expect.stringMatching(/^prefill workers: Unschedulable: 0\/2 nodes .*nvidia\.com\/gpu/),
        mayPass: true,
      });
      const events = await api.call({ method: "GET", path: `/apis/events.k8s.io/v1/namespaces/${NAMESPACE}/events` });
      expect(JSON.stringify(events)).toMatch(/"reason":"CapacityMissing"/);
      kube.scale(NANO, "prefill", 0);
      kube.scale(NANO, "decode", 0);
      await waitFor(
        "the end of the lack",
        async () => ((await condition("prefill"))?.status === "True" ? true : null),
        WAIT_MS,
      );
      await waitFor("no workers", () => (kube.workers().length === 0 ? true : null), WAIT_MS);
      await kube.close();
    });

    test("an account without rights: the sentence names what is missing", async () => {
      const { api, kubeconfig } = world();
      const token = (await api.call({
        method: "POST",
        path: `/api/v1/namespaces/${NAMESPACE}/serviceaccounts/default/token`,
        body: { apiVersion: "authentication.k8s.io/v1", kind: "TokenRequest", spec: {} },
      })) as { readonly status: { readonly token: string } };
      const config = JSON.parse(kubeconfig) as { users: { user: { token: string } }[] };
      config.users[0]!.user.token = token.status.token;
      const kube = target([], connectKube(JSON.stringify(config), systemClock).api);
      kube.start();
      const failure = await waitFor("the refusal", () => kube.lastFailure(NANO), WAIT_MS);
      expect(failure.sentence).toContain('cannot list resource "deployments" in API group "apps"');
      await kube.close();
    });
  });
});
