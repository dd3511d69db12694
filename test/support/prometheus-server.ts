import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { freePort } from "./free-port.ts";
import { waitFor } from "./system.ts";

const rules = fileURLToPath(new URL("../../helm/files/rules.yaml", import.meta.url));

/** A real Prometheus that scrapes once a second, with the product's recording rules. */
export interface Prometheus extends AsyncDisposable {
  readonly url: string;
}

export async function startPrometheus(program: string, targets: readonly string[]): Promise<Prometheus> {
  const folder = mkdtempSync(join(tmpdir(), "margay-prometheus-"));
  const port = await freePort();
  const config = {
    global: { scrape_interval: "1s", scrape_timeout: "1s", evaluation_interval: "1s" },
    rule_files: [rules],
    scrape_configs: [
      { job_name: "margay", static_configs: [{ targets: targets.map((target) => target.replace("http://", "")) }] },
    ],
  };
  writeFileSync(join(folder, "prometheus.yml"), JSON.stringify(config));
  const child = spawn(
    program,
    [
      `--config.file=${join(folder, "prometheus.yml")}`,
      `--storage.tsdb.path=${join(folder, "data")}`,
      `--web.listen-address=127.0.0.1:${port}`,
    ],
    { stdio: ["ignore", "ignore", "pipe"] },
  );
  let log = "";
  child.stderr.on("data", (bytes: Buffer) => (log += bytes.toString()));
  const url = `http://127.0.0.1:${port}`;
  await waitFor(
    "Prometheus to be ready",
    async () => ((await fetch(`${url}/-/ready`).catch(() => null))?.ok ? true : null),
    30_000,
    () => log,
  );
  return {
    url,
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      await new Promise((resolve) => child.once("exit", resolve));
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

/** Values of a query, one list of [epoch seconds, value] per series. */
export interface RangeSeries {
  readonly labels: Readonly<Record<string, string>>;
  readonly points: readonly (readonly [number, number])[];
}

interface Answer<T> {
  readonly error?: string;
  readonly data?: { readonly result: readonly T[] };
}

async function answerOf<T>(url: string, path: string, query: Readonly<Record<string, string>>): Promise<readonly T[]> {
  const response = await fetch(`${url}/api/v1/${path}?${new URLSearchParams(query)}`);
  const answer = (await response.json()) as Answer<T>;
  if (answer.data === undefined) throw new Error(`${query.query}: ${answer.error}`);
  return answer.data.result;
}

/** Values of an instant query, one per series. */
export async function queryNow(url: string, query: string): Promise<readonly number[]> {
  const result = await answerOf<{ readonly value: readonly [number, string] }>(url, "query", { query });
  return result.map(({ value }) => Number(value[1]));
}

/** What a query gave each second from one time to another, in epoch seconds. */
export async function queryRange(
  url: string,
  query: string,
  [from, to]: readonly [number, number],
): Promise<readonly RangeSeries[]> {
  const range = { query, start: String(from), end: String(to), step: "1" };
  const result = await answerOf<{
    readonly metric: Readonly<Record<string, string>>;
    readonly values: readonly (readonly [number, string])[];
  }>(url, "query_range", range);
  return result.map(({ metric, values }) => ({
    labels: metric,
    points: values.map(([at, value]) => [at, Number(value)] as const),
  }));
}
