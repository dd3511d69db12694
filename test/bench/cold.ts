import { START_STEPS } from "#protocol/scaling.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";
import { closeConnections, streamCompletion } from "./http-stream.ts";
import type { BenchOptions } from "./options.ts";
import { machineLine, print, spread, summary } from "./report.ts";

/** From the request that finds no worker to its first token. */
const COLD_MS = 1_500;
const CACHED_MS = 800;
const BODY = { model: "nano", prompt: "The margay is a small wild cat", max_tokens: 4, min_tokens: 4, temperature: 0 };

interface Wake {
  readonly firstMs: number;
  /** Milliseconds by role and step. */
  readonly steps: ReadonlyMap<string, number>;
}

/** How long a request waits that finds no workers: with nothing cached, and with the packed weights of an earlier start. */
export async function benchCold(options: BenchOptions): Promise<void> {
  const [systems, wakes] = options.quick ? [1, 2] : [4, 4];
  const cold: Wake[] = [];
  const cached: Wake[] = [];
  for (let i = 0; i < systems; i++) {
    const system = await startSystem({
      ...{ MARGAY_BACKEND: options.backend, MARGAY_THREADS: "0", MARGAY_PREFILL: "0..1", MARGAY_DECODE: "0..1" },
      ...{ MARGAY_IDLE_SECONDS: "2", MARGAY_KEEP_ALIVE: "fixed" },
    });
    try {
      cold.push(await wake(system));
      for (let again = 0; again < wakes; again++) cached.push(await wake(system));
    } finally {
      closeConnections();
      await system.stop();
    }
  }
  const row = (name: string, of: (one: Wake) => number) => [
    name,
    ...[cold, cached].map((list) => spread(summary(list.map(of)), 0)),
  ];
  print({
    title: "From zero: request to first token, milliseconds",
    machine: machineLine({ isa: options.backend, threads: 0 }),
    workload: `nano, a request over HTTP that finds no worker; ${cold.length} times with an empty state folder, ${cached.length} times with packed weights`,
    rows: [
      ["median (least..most)", "nothing cached", "packed weights cached"],
      row("request to first token", ({ firstMs }) => firstMs),
      ...(["prefill", "decode"] as const).flatMap((role) =>
        START_STEPS.filter((step) => step !== "schedule").map((step) =>
          row(`${role}: ${step}`, ({ steps }) => steps.get(`${role} ${step}`) ?? Number.NaN),
        ),
      ),
    ],
    notMeasured:
      "finding a place to run: processes are started at once. The pages of the checkpoint are in the page cache.",
  });
  const most = (list: readonly Wake[]) => summary(list.map(({ firstMs }) => firstMs)).p50;
  const promise = (what: string, list: readonly Wake[], limit: number) =>
    options.promises.check(`${what}: ${most(list).toFixed(0)} ms, at most ${limit} ms`, most(list) <= limit);
  promise("from zero with nothing cached (median)", cold, COLD_MS);
  promise("from zero with packed weights cached (median)", cached, CACHED_MS);
}

/** One request to a system at zero; then it goes back to zero. */
async function wake(system: System): Promise<Wake> {
  await waitFor("no worker to be left", async () => ((await system.ranks()).length === 0 ? true : null), 60_000);
  const { firstMs } = await streamCompletion(system.url, BODY);
  const steps = new Map<string, number>();
  for (const { role, healthUrl } of await system.ranks()) {
    for (const [labels, seconds] of await system.metric(healthUrl, "margay_start_seconds")) {
      steps.set(`${role} ${/step="(\w+)"/.exec(labels)![1]}`, seconds * 1000);
    }
  }
  return { firstMs, steps };
}
