import { beforeAll, expect, test, vi } from "vitest";
import { unary } from "../support/client.ts";
import { waitFor } from "../support/system.ts";
import { describeOnCluster } from "./cluster-or-skip.ts";
import { RELEASE_TOOLS, Release, WAIT_MS } from "./release.ts";

/** A release under two kinds of load, each of which is work for one role; of a model each, for what was needed is remembered. */

const TEST_MS = 300_000;
vi.setConfig({ testTimeout: TEST_MS, hookTimeout: TEST_MS });

const LOOK_MS = 200;

interface Load {
  readonly model: string;
  readonly clients: number;
  readonly words: number;
  readonly tokens: number;
}

describeOnCluster(
  "the workers of a release",
  (world) => {
    let release: Release;
    let asked = 0;

    beforeAll(async () => {
      const nano = { volume: { image: "models/nano" }, engine: { latentNormEps: "1e-6", threads: 1, slots: 16 } };
      const crowded = { ...nano, engine: { ...nano.engine, slots: 4 } };
      const limits = { min: 1, max: 2 };
      release = await Release.install(world(), {
        models: { nano, crowded },
        scaling: { prefill: limits, decode: limits, idleSeconds: 3, keepAlive: "fixed", ttftGoalMs: 100 },
        drainSeconds: 10,
      });
    });

    const pods = async (model: string) => (await release.workers()).filter((pod) => pod.model === model);

    async function oneOfEach(model: string): Promise<void> {
      const right = async () => {
        const found = await pods(model);
        const roles = found.filter(({ ready, stopping }) => ready && !stopping).map(({ role }) => role);
        return found.length === 2 && roles.includes("prefill") && roles.includes("decode") ? true : null;
      };
      await waitFor(`one worker of each role of ${model}`, right, WAIT_MS);
    }

    /** Has clients ask without a pause until a third worker takes requests. Returns the most there were of each role. */
    async function grown({ model, clients, words, tokens }: Load) {
      const most = { prefill: 0, decode: 0 };
      const errors: unknown[] = [];
      let over = false;
      const client = async (): Promise<void> => {
        while (!over) {
          // No two prompts begin alike.
          const prompt = `${asked++} ${"hello ".repeat(words)}`;
          const limits = { temperature: 0, max_tokens: tokens, min_tokens: tokens };
          const { error } = await unary(release.url, "/v1/completions", { model, prompt, ...limits });
          if (error !== null) errors.push(error);
        }
      };
      const all = Promise.all(Array.from({ length: clients }, client));
      all.catch(() => {});
      const third = async () => {
        const found = await pods(model);
        for (const role of ["prefill", "decode"] as const) {
          most[role] = Math.max(most[role], found.filter((pod) => pod.role === role).length);
        }
        // The API server shares the machine with what it is asked about.
        await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
        return found.length > 2 && found.every(({ ready }) => ready) ? true : null;
      };
      try {
        await waitFor("a third worker", third, WAIT_MS, () => JSON.stringify(most));
      } finally {
        over = true;
      }
      await all;
      expect(errors).toEqual([]);
      return most;
    }

    test.each<[string, Load, object]>([
      [
        "long prompts and short answers grow prefill alone, and it returns",
        { model: "nano", clients: 4, words: 400, tokens: 2 },
        { prefill: 2, decode: 1 },
      ],
      [
        "short prompts and long answers grow decode alone, and it returns",
        { model: "crowded", clients: 10, words: 1, tokens: 200 },
        { prefill: 1, decode: 2 },
      ],
    ])("%s", async (_, load, most) => {
      await oneOfEach(load.model);
      const seen = await grown(load);
      expect(seen, JSON.stringify(seen) === JSON.stringify(most) ? "" : await release.logs()).toEqual(most);
      await oneOfEach(load.model);
    });
  },
  RELEASE_TOOLS,
);
