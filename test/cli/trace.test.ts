import { expect, test } from "vitest";
import { chromeTrace, type TracedRank } from "../../control-plane/cli/trace.ts";
import { drawTrace } from "../../control-plane/cli/trace-chart.ts";
import { startSystem } from "../support/system.ts";

const ranks: readonly TracedRank[] = [
  {
    rank: { rankId: "prefill-1-r0" as never, role: "prefill", pid: 7 },
    spans: [{ name: "step", thread: "margay-engine", startMs: 1000, ms: 4 }],
  },
  {
    rank: { rankId: "decode-1-r0" as never, role: "decode", pid: 8 },
    spans: [
      { name: "plan", thread: "JavaScript", startMs: 1002, ms: 0.5 },
      { name: "a <b>", thread: "margay-engine", startMs: 1001, ms: 2 },
    ],
  },
];

test("spans of several processes share one clock that starts with the first", () => {
  const { traceEvents } = chromeTrace(ranks) as { readonly traceEvents: readonly Record<string, unknown>[] };
  const complete = traceEvents.filter(({ ph }) => ph === "X");
  expect(complete.map(({ pid, name, ts, dur }) => ({ pid, name, ts, dur }))).toEqual([
    { pid: 7, name: "step", ts: 0, dur: 4000 },
    { pid: 8, name: "plan", ts: 2000, dur: 500 },
    { pid: 8, name: "a <b>", ts: 1000, dur: 2000 },
  ]);
  const names = traceEvents.filter(({ name }) => name === "process_name").map(({ args }) => args);
  expect(names).toEqual([{ name: "prefill prefill-1-r0" }, { name: "decode decode-1-r0" }]);
});

test("every thread has a lane, and names are escaped", () => {
  const svg = drawTrace(ranks);
  for (const words of ["prefill prefill-1-r0", "decode decode-1-r0", "margay-engine", "JavaScript"])
    expect(svg).toContain(words);
  expect(svg).toContain("a &#60;b&#62;");
  expect(svg).not.toContain("a <b>");
});

test("a recording of a system at work shows planning, kernels, transfer and token sending", async () => {
  const system = await startSystem({ MARGAY_BACKEND: "cpu", MARGAY_LOG_LEVEL: "error" });
  try {
    await Promise.all([system.ready("prefill", 1), system.ready("decode", 1)]);
    const traced = Promise.all(
      (await system.ranks()).map(async ({ role, healthUrl }) => {
        const response = await fetch(`${healthUrl}/trace?ms=4000`);
        return { role, spans: (await response.json()) as TracedRank["spans"] };
      }),
    );
    const prompt = "The red fox walks to the river and sees a bear. ".repeat(20);
    const body = JSON.stringify({ model: "nano", prompt, max_tokens: 40, min_tokens: 40 });
    const headers = { "content-type": "application/json" };
    await (await fetch(`${system.url}/v1/completions`, { method: "POST", headers, body })).text();
    const names = new Map((await traced).map(({ role, spans }) => [role, new Set(spans.map(({ name }) => name))]));
    for (const name of ["plan", "attend", "experts", "send pages", "send first token"])
      expect(names.get("prefill")).toContain(name);
    for (const name of ["plan", "attend", "experts", "receive page", "send tokens"])
      expect(names.get("decode")).toContain(name);
    const [rank] = await system.ranks();
    expect((await fetch(`${rank!.healthUrl}/trace?ms=99999`)).status).toBe(400);
  } finally {
    await system.stop();
  }
}, 120_000);
