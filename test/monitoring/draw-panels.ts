import { mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Board } from "../../control-plane/monitoring/board.ts";
import { BOARDS } from "../../control-plane/monitoring/boards.ts";
import { PANEL_WINDOW } from "../../control-plane/monitoring/promql.ts";
import { chromium, startBrowser } from "../support/browser.ts";
import { KeysFile, keyFor } from "../support/keys-file.ts";
import { linesOf, panelChart } from "../support/panel-chart.ts";
import { queryRange, startPrometheus } from "../support/prometheus-server.ts";
import { prometheusTool } from "../support/prometheus-tools.ts";
import { startSystem } from "../support/system.ts";

/**
 * `npm run panels`: starts a system and a Prometheus, puts the system under load, kills a rank meanwhile, and draws every panel of
 * every board from what Prometheus then answers: docs/dashboards/BOARD.png. Names the panels that had no data.
 */
const LOAD_SECONDS = 75;
/** Long enough for several scrapes, as Grafana would choose it. */
const WINDOW = "10s";
const OUT = fileURLToPath(new URL("../../docs/dashboards/", import.meta.url));
const STYLE =
  "body{margin:0;padding:18px;background:#f7f4ee;font-family:system-ui,sans-serif;color:#221c14;width:1420px}" +
  "h1{font-size:22px;margin:0 0 14px}main{display:grid;grid-template-columns:repeat(3,460px);gap:14px}" +
  ".title{font-size:14px;font-weight:650}.tick{font-size:10.5px;fill:#665b4c}.name{font-size:11px}.none{fill:#a8261b;font-size:14px}";

const prometheusProgram = prometheusTool("prometheus");
const browserProgram = chromium();
if ("lack" in prometheusProgram) throw new Error(prometheusProgram.lack);
if ("lack" in browserProgram) throw new Error(browserProgram.lack);

const tenants = ["acme", "birch"].map((name) => keyFor(name));
await using keys = await KeysFile.with({
  tenants: { acme: {}, birch: { limits: { requestsPerMinute: 30 } } },
  prices: { currency: "EUR", models: { nano: { input: "0.5", output: "2" } } },
  keys: tenants.map(({ line }) => line),
});
const system = await startSystem({
  ...{ MARGAY_KEYS_FILE: keys.path, MARGAY_DECODE_EP: "2", MARGAY_EP_BALANCE_SECONDS: "1" },
  // Several processes on few cores: a rank is late because it waits for its turn.
  MARGAY_EXCHANGE_DEADLINE_MS: "5000",
});
const browser = await startBrowser(browserProgram.path);
try {
  const ranks = [...(await system.ready("prefill", 1)), ...(await system.ready("decode", 2))];
  await using prometheus = await startPrometheus(prometheusProgram.path, [
    system.url,
    ...ranks.map(({ healthUrl }) => healthUrl),
  ]);
  const load = new AbortController();
  const clients = Array.from({ length: 5 }, (_, at) => keepAsking(tenants[at % 2]!.key, at, load.signal));
  await new Promise((resolve) => setTimeout(resolve, (LOAD_SECONDS * 1000) / 2));
  // Something to see of retries, crashes and groups.
  process.kill(ranks.at(-1)!.pid, "SIGKILL");
  await new Promise((resolve) => setTimeout(resolve, (LOAD_SECONDS * 1000) / 2));
  mkdirSync(OUT, { recursive: true });
  const page = await browser.newPage();
  await page.setViewport({ width: 1456, height: 100 });
  for (const board of BOARDS) {
    const { html, empty } = await sheet(prometheus.url, board);
    await page.setContent(html);
    await page.screenshot({ path: `${OUT}${board.name}.png` as const, fullPage: true });
    console.log(
      `docs/dashboards/${board.name}.png: ${board.panels.length} panels${empty.map((title) => `; no data: ${title}`).join("")}`,
    );
  }
  load.abort();
  await Promise.all(clients);
} finally {
  await browser.close();
  await system.stop();
}

/** All panels of a board as a page. */
async function sheet(
  url: string,
  { title, panels }: Board,
): Promise<{ readonly html: string; readonly empty: readonly string[] }> {
  const now = Math.floor(Date.now() / 1000);
  const range = [now - LOAD_SECONDS, now] as const;
  const empty: string[] = [];
  const charts: string[] = [];
  for (const panel of panels) {
    const lines = [];
    for (const { expr, legend } of panel.queries)
      lines.push(...linesOf(legend, await queryRange(url, expr.replaceAll(PANEL_WINDOW, WINDOW), range)));
    if (lines.every(({ points }) => points.length === 0)) empty.push(panel.title);
    charts.push(panelChart(panel, lines, range));
  }
  return { html: `<style>${STYLE}</style><h1>Margay: ${title}</h1><main>${charts.join("")}</main>`, empty };
}

/** One stream after the other; a refused one waits a moment. */
async function keepAsking(key: string, client: number, signal: AbortSignal): Promise<void> {
  for (let turn = 0; !signal.aborted; turn++) {
    const content = `Client ${client} asks question ${turn}: ${"what is a margay? ".repeat(4 + ((turn * 7 + client) % 20))}`;
    const body = {
      model: "nano",
      messages: [{ role: "user", content }],
      max_tokens: 16 + ((turn * 13) % 64),
      ignore_eos: true,
    };
    const response = await fetch(`${system.url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
      body: JSON.stringify({ ...body, stream: turn % 2 === 0 }),
      signal,
    }).catch(() => null);
    await response?.text().catch(() => {});
    if (response?.status === 429) await new Promise((resolve) => setTimeout(resolve, 1_000));
  }
}
