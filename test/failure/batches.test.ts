import { toFile } from "openai";
import { afterAll, beforeAll, expect, test } from "vitest";
import { controlPlanePid, openAiOf } from "../support/gateway-process.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";

const LINES = 60;
let system: System;

beforeAll(async () => {
  system = await startSystem({ MARGAY_BATCH_LINES: "4" });
  await system.ready("prefill", 1);
  await system.ready("decode", 1);
});
afterAll(async () => expect(await system.stop()).toBe(0));

const lineOf = (index: number) =>
  JSON.stringify({
    ...{ custom_id: `line-${index}`, method: "POST", url: "/v1/completions" },
    body: { model: "nano", prompt: `Number ${index}:`, max_tokens: 200, min_tokens: 200, temperature: 0 },
  });

test("a batch survives the gateway that works on it, killed: every line is answered once", async () => {
  const first = await openAiOf(system);
  const text = Array.from({ length: LINES }, (_, index) => lineOf(index)).join("\n");
  const { id: input_file_id } = await first.files.create({
    ...{ purpose: "batch", file: await toFile(Buffer.from(text), "in.jsonl") },
  });
  const asked = { input_file_id, endpoint: "/v1/completions", completion_window: "24h" } as const;
  const { id } = await first.batches.create(asked);
  const atKill = await waitFor(
    "some of the answers",
    async () => (await first.batches.retrieve(id)).request_counts!.completed || null,
    60_000,
    system.log,
  );
  expect(atKill).toBeLessThan(LINES);
  process.kill(await controlPlanePid(system), "SIGKILL");
  const batch = await waitFor(
    "the end of the batch",
    async () => {
      const found = await (await openAiOf(system)).batches.retrieve(id).catch(() => null);
      return found?.status === "completed" ? found : null;
    },
    120_000,
    system.log,
  );
  expect(batch.request_counts).toEqual({ total: LINES, completed: LINES, failed: 0 });
  const answers = (await (await (await openAiOf(system)).files.content(batch.output_file_id!)).text())
    .trimEnd()
    .split("\n");
  const names = answers.map((line) => (JSON.parse(line) as { readonly custom_id: string }).custom_id);
  expect(names).toHaveLength(LINES);
  expect(new Set(names)).toEqual(new Set(Array.from({ length: LINES }, (_, index) => `line-${index}`)));
}, 240_000);
