import { writeFile } from "node:fs/promises";
import { z } from "zod";
import { type RankStatus, StatusQuery, StatusReport } from "#protocol/operator.ts";
import { subjects } from "#protocol/subjects.ts";
import { systemClock } from "#service/clock.ts";
import { operatorBus } from "./operator-bus.ts";
import { drawTrace, pngOf } from "./trace-chart.ts";

const ANSWER_MS = 5_000;
export const MOST_TRACE_SECONDS = 10;

const Spans = z.array(z.strictObject({ name: z.string(), thread: z.string(), startMs: z.number(), ms: z.number() }));

/** Spans of one rank. */
export interface TracedRank {
  readonly rank: Pick<RankStatus, "rankId" | "role" | "pid">;
  readonly spans: z.infer<typeof Spans>;
}

/**
 * Records what all workers do for some seconds, at the same time; writes `FILE.json` in Chrome's trace format and a
 * picture of it, `FILE.svg`, and `FILE.png` where a program that makes one is installed; an ending of these that FILE has
 * is left out. Returns the exit code.
 */
export async function trace(options: { readonly seconds: number; readonly file: string }): Promise<number> {
  const { seconds } = options;
  const file = options.file.replace(/\.(json|svg|png)$/, "");
  await using bus = await operatorBus();
  const query = { kind: "status-query" } as const;
  const report = await bus.request(subjects.operatorStatus(), StatusQuery, query, StatusReport, ANSWER_MS);
  const ready = report.ranks.filter((rank) => rank.state === "ready");
  if (ready.length === 0) throw new Error("no worker runs: they start with the next request");
  const ranks = await Promise.all(ready.map((rank) => record(rank, seconds * 1000)));
  const count = ranks.reduce((sum, { spans }) => sum + spans.length, 0);
  await writeFile(`${file}.json`, JSON.stringify(chromeTrace(ranks)));
  const svg = drawTrace(ranks);
  await writeFile(`${file}.svg`, svg);
  const drawn = (await pngOf(`${file}.svg`, `${file}.png`)) ? ["json", "svg", "png"] : ["json", "svg"];
  process.stdout.write(
    `${count} spans of ${ranks.length} workers: ${drawn.map((end) => `${file}.${end}`).join(", ")}\n`,
  );
  return 0;
}

async function record(rank: RankStatus, ms: number): Promise<TracedRank> {
  const patience = new AbortController();
  const timer = systemClock.after(ms + ANSWER_MS, () => patience.abort(new Error(`${rank.rankId} does not answer`)));
  try {
    const response = await fetch(`${rank.healthUrl}/trace?ms=${ms}`, { signal: patience.signal });
    if (!response.ok) throw new Error(`${rank.rankId} cannot be traced now: its answer was ${response.status}`);
    return { rank, spans: Spans.parse(await response.json()) };
  } finally {
    timer.cancel();
  }
}

/** The Trace Event Format: complete events in microseconds, one process per rank, and their names. */
export function chromeTrace(ranks: readonly TracedRank[]): object {
  const startMs = Math.min(...ranks.flatMap(({ spans }) => spans.map((span) => span.startMs)));
  const traceEvents = ranks.flatMap(({ rank, spans }) => {
    const threads = [...new Set(spans.map(({ thread }) => thread))];
    const named = { ph: "M", pid: rank.pid };
    return [
      { ...named, tid: 0, name: "process_name", args: { name: `${rank.role} ${rank.rankId}` } },
      ...threads.map((name, tid) => ({ ...named, tid, name: "thread_name", args: { name } })),
      ...spans.map(({ name, thread, startMs: at, ms }) => ({
        ph: "X",
        pid: rank.pid,
        tid: threads.indexOf(thread),
        name,
        cat: thread,
        ts: 1000 * (at - startMs),
        dur: 1000 * ms,
      })),
    ];
  });
  return { displayTimeUnit: "ms", otherData: { startedAtMs: startMs }, traceEvents };
}
