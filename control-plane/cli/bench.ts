import { writeFile } from "node:fs/promises";
import { systemClock } from "#service/clock.ts";
import { loadReport, reportChart, reportText } from "../load/load-report.ts";
import { closedLoop, type LoadRequest, openLoop, replay } from "../load/load-request.ts";
import { runLoad } from "../load/load-run.ts";
import { readTrace } from "../simulate/trace-file.ts";
import { cliConfig } from "./config.ts";
import { runningSystem } from "./running-system.ts";

export interface BenchOptions {
  /** null: the system that runs on this machine. */
  readonly url: string | null;
  /** null: the first one that is served. */
  readonly model: string | null;
  readonly load:
    | { readonly kind: "closed" }
    | { readonly kind: "open"; readonly perSecond: number }
    | { readonly kind: "trace"; readonly file: string; readonly speed: number; readonly shrink: number };
  readonly clients: number;
  readonly requests: number;
  readonly promptTokens: number;
  readonly maxTokens: number;
  readonly exact: boolean;
  readonly goals: { readonly ttftMs: number; readonly tpotMs: number };
  /** Files `OUT.json` and `OUT.svg`; null: none. */
  readonly out: string | null;
}

const REQUEST_MS = 600_000;
const REDRAW_MS = 250;

/** Puts a server under load and tells how it answered. Returns the exit code: 1 where no request went well. */
export async function bench(options: BenchOptions): Promise<number> {
  const url = (options.url ?? (await runningSystem()).url).replace(/\/(v1\/?)?$/, "");
  const { apiKey } = cliConfig();
  const model = options.model ?? (await firstModel(url, apiKey));
  const clock = systemClock;
  let drawnMs = 0;
  const onProgress = (done: number, failed: number, running: number): void => {
    if (!process.stderr.isTTY || clock.monotonic() - drawnMs < REDRAW_MS) return;
    drawnMs = clock.monotonic();
    process.stderr.write(`\r\x1b[K${done} answered, ${failed} failed, ${running} under way`);
  };
  const target = { url, model, apiKey, exact: options.exact };
  const requests = requestsOf(options);
  const outcome = await runLoad({
    target,
    requests,
    clients: options.clients,
    requestMs: REQUEST_MS,
    clock,
    onProgress,
  });
  if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
  const report = loadReport(outcome, options.goals);
  process.stdout.write(reportText(report));
  const { out } = options;
  if (out !== null) {
    const file = out.replace(/\.(json|svg)$/, "");
    await writeFile(`${file}.json`, `${JSON.stringify({ url, model, load: options.load, report, ...outcome })}\n`);
    await writeFile(`${file}.svg`, reportChart(outcome));
    process.stdout.write(`written: ${file}.json, ${file}.svg\n`);
  }
  return report.failed === report.requests ? 1 : 0;
}

function requestsOf({ load, ...shape }: BenchOptions): readonly LoadRequest[] {
  // Prompts of an earlier run are in the server's cache.
  const seed = String(systemClock.now());
  if (load.kind === "closed") return closedLoop(shape, seed);
  if (load.kind === "open") return openLoop(shape, load.perSecond, seed);
  return replay(readTrace(load.file), { ...load, requests: shape.requests }, seed);
}

async function firstModel(url: string, apiKey: string | null): Promise<string> {
  const headers: Record<string, string> = apiKey === null ? {} : { authorization: `Bearer ${apiKey}` };
  const response = await fetch(`${url}/v1/models`, { headers });
  if (!response.ok) throw new Error(`${url}/v1/models answered with status ${response.status}`);
  const { data } = (await response.json()) as { readonly data: readonly { readonly id: string }[] };
  if (data[0] === undefined) throw new Error(`${url} serves no model`);
  return data[0].id;
}
