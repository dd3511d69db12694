import OpenAI from "openai";
import { beforeAll, expect, test, vi } from "vitest";
import { stream, unary } from "../support/client.ts";
import { keyFor } from "../support/keys-file.ts";
import { waitFor } from "../support/system.ts";
import { describeOnCluster } from "./cluster-or-skip.ts";
import { NODES } from "./kube-world.ts";
import { create, deploymentPath, NAMESPACE } from "./manifests.ts";
import { RELEASE_TOOLS, Release, WAIT_MS } from "./release.ts";

/** A whole release, from helm's install to requests of several tenants: from zero, back to it, and without room. */

/** Promised of a request that finds no pod. */
const COLD_MS = 4_000;
/** Stands for 20 minutes: one second for five minutes. Nothing but this setting knows how long an idle model keeps its pods. */
const IDLE_SECONDS = 4;
const LOOK_MS = 200;
const BURST = 50;
const TOKENS = 12;
/** Of one test: some wait for several things in turn. */
const TEST_MS = 300_000;
vi.setConfig({ testTimeout: TEST_MS, hookTimeout: TEST_MS });
const nano = { volume: { image: "models/nano" }, engine: { latentNormEps: "1e-6", threads: 1 } };
const TENANTS = ["acme", "globex", "initech"].map((tenant) => ({ tenant, ...keyFor(tenant) }));

describeOnCluster(
  "a release on a cluster",
  (world) => {
    let release: Release;
    const completion = (i: number, tokens = TOKENS, model = "nano") => ({
      ...{ model, prompt: `Request number ${i % 16} says hello`, temperature: 0 },
      ...{ max_tokens: tokens, min_tokens: tokens },
    });
    const authorization = { authorization: `Bearer ${TENANTS[0]!.key}` };

    beforeAll(async () => {
      const file = {
        tenants: Object.fromEntries(TENANTS.map(({ tenant }) => [tenant, {}])),
        keys: TENANTS.map(({ line }) => line),
      };
      await create(world().api, `/api/v1/namespaces/${NAMESPACE}/secrets`, {
        ...{ apiVersion: "v1", kind: "Secret", metadata: { name: "tenants" } },
        stringData: { "keys.json": JSON.stringify(file) },
      });
      // No node has so much memory.
      const nowhere = { resources: { requests: { memory: "900Ti" } } };
      release = await Release.install(world(), {
        models: { nano, greedy: { ...nano, prefill: nowhere, decode: nowhere } },
        scaling: { idleSeconds: IDLE_SECONDS, keepAlive: "fixed" },
        keys: { secretName: "tenants" },
        drainSeconds: 10,
      });
    });

    /** The official client, as one of the tenants; it tries nothing twice. `comments` are those of its streams so far. */
    function client(i: number): { readonly openai: OpenAI; readonly comments: () => string } {
      let streamed = "";
      const keep = async (response: Response) => {
        for await (const text of response.body!.pipeThrough(new TextDecoderStream())) streamed += text;
      };
      const openai = new OpenAI({
        ...{ baseURL: `${release.url}/v1`, apiKey: TENANTS[i % TENANTS.length]!.key, maxRetries: 0 },
        fetch: async (...asked) => {
          const response = await fetch(...asked);
          // What goes wrong with it is the client's to tell.
          keep(response.clone()).catch(() => {});
          return response;
        },
      });
      const lines = () => streamed.split("\n").filter((line) => line.startsWith(":"));
      return { openai, comments: () => lines().join("\n") };
    }

    /** Asks for a stream. Resolves with how many tokens it is told to have had. */
    async function streamed(openai: OpenAI, i: number): Promise<number> {
      const asked = { ...completion(i), stream: true as const, stream_options: { include_usage: true } };
      let tokens = 0;
      for await (const chunk of await openai.completions.create(asked)) {
        expect(chunk.object).toBe("text_completion");
        tokens = chunk.usage?.completion_tokens ?? tokens;
      }
      return tokens;
    }

    const whole = async (openai: OpenAI, i: number): Promise<number> => {
      const { usage } = await openai.completions.create({ ...completion(i), stream: false });
      return usage?.completion_tokens ?? 0;
    };

    /** Waits for answers out of zero; meanwhile no pod of one role is ready before there is one of the other. */
    async function wokenTogether<T>(answers: Promise<T>): Promise<T> {
      let over = false;
      const end = () => {
        over = true;
      };
      answers.then(end, end);
      while (!over) {
        const pods = await release.workers();
        if (!over && pods.some(({ ready }) => ready)) {
          const roles = new Set(pods.map(({ role }) => role));
          expect([...roles].sort(), await release.logs()).toEqual(["decode", "prefill"]);
        }
        await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
      }
      return answers;
    }

    test("is installed without workers that nobody asked for, and serves nobody without a key", async () => {
      await release.nobody();
      const refused = await unary(release.url, "/v1/completions", completion(0));
      expect(refused.status, JSON.stringify(refused.error)).toBe(401);
      expect(await release.workers()).toEqual([]);
    });

    test("the first request wakes a pod of each role together, is told so, and is answered", async () => {
      const beganMs = performance.now();
      let firstMs = 0;
      const onChunk = () => {
        if (firstMs === 0) firstMs = performance.now() - beganMs;
      };
      const options = { headers: authorization, onChunk };
      const answer = await wokenTogether(stream(release.url, "/v1/completions", completion(0, 20), options));
      expect(answer.error, await release.logs()).toBeNull();
      expect(answer.usage?.completion_tokens).toBe(20);
      expect(firstMs).toBeLessThan(3 * COLD_MS);
      process.stderr.write(`from zero to the first token on the cluster: ${Math.round(firstMs)} ms\n`);
    });

    test("after the idle time there are no pods; a burst of 50 of three tenants wakes them, none fails, and they go again", async () => {
      await release.nobody();
      // Nodes that take no pods for now: streams are silent long enough to be told why.
      for (const node of NODES) await release.kubectl("cordon", node);
      const clients = Array.from({ length: BURST }, (_, i) => client(i));
      const answers = Promise.all(clients.map(({ openai }, i) => (i % 2 === 0 ? streamed : whole)(openai, i)));
      const waking = /^: margay waking prefill \d\/1 .*decode \d\/1 /m;
      const told = () =>
        new Set(clients.flatMap(({ comments }, i) => (waking.test(comments()) ? [i % TENANTS.length] : [])));
      const tokens = wokenTogether(answers);
      await waitFor("comments to every tenant", () => (told().size === TENANTS.length ? true : null), WAIT_MS);
      for (const node of NODES) await release.kubectl("uncordon", node);
      expect(await tokens).toEqual(clients.map(() => TOKENS));
      await release.nobody();
    });

    test("pods that find no node: their requests end with 503 and the reason, and other models go on", async () => {
      const impatient = { headers: { ...authorization, "x-margay-max-wait": "8" } };
      const greedy = completion(0, 12, "greedy");
      const answers = Promise.all([
        unary(release.url, "/v1/completions", greedy, impatient.headers),
        stream(release.url, "/v1/completions", greedy, impatient),
        unary(release.url, "/v1/completions", completion(1), authorization),
      ]);
      answers.catch(() => {});
      const told = async (path: string) => JSON.stringify(await world().api.call({ method: "GET", path }));
      const path = deploymentPath(`${release.name}-greedy-decode`);
      const unschedulable = async () => ((await told(path)).includes('"reason":"Unschedulable"') ? true : null);
      await waitFor("the condition", unschedulable, WAIT_MS);
      const [refused, broken, served] = await answers;
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
      const events = await told(`/apis/events.k8s.io/v1/namespaces/${NAMESPACE}/events`);
      expect(events).toMatch(/"reason":"CapacityMissing"/);
    });
  },
  RELEASE_TOOLS,
);
