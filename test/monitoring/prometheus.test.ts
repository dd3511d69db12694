import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BOARDS } from "../../control-plane/monitoring/boards.ts";
import { PANEL_WINDOW } from "../../control-plane/monitoring/promql.ts";
import { RECORDING_RULES } from "../../control-plane/monitoring/recording-rules.ts";
import { KeysFile, keyFor } from "../support/keys-file.ts";
import { type Prometheus, queryNow, startPrometheus } from "../support/prometheus-server.ts";
import { prometheusTool } from "../support/prometheus-tools.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";

/** A real Prometheus scrapes a running system under load: every query of every board has something to show. */

const found = prometheusTool("prometheus");
/** Long enough for several scrapes, as Grafana would choose it. */
const WINDOW = "20s";

if ("lack" in found) test.skip(`Prometheus scrapes a running system (not run: ${found.lack})`, () => {});
else describe("Prometheus over a running system", () => describePrometheus(found.path));

/** What clients counted. */
interface Counted {
  requests: number;
  promptTokens: number;
  generatedTokens: number;
}

function describePrometheus(program: string): void {
  const tenant = keyFor("acme");
  let keys: KeysFile;
  let system: System;
  let prometheus: Prometheus;
  const counted: Counted = { requests: 0, promptTokens: 0, generatedTokens: 0 };

  beforeAll(async () => {
    keys = await KeysFile.with({ tenants: { acme: {} }, keys: [tenant.line] });
    system = await startSystem({
      MARGAY_KEYS_FILE: keys.path,
      MARGAY_DECODE_EP: "2",
      MARGAY_EP_BALANCE_SECONDS: "1",
      // Several processes on few cores: a rank is late because it waits for its turn.
      MARGAY_EXCHANGE_DEADLINE_MS: "10000",
    });
    await system.ready("prefill", 1);
    const ranks = await system.ready("decode", 2);
    const all = [...(await system.ready("prefill", 1)), ...ranks];
    prometheus = await startPrometheus(program, [system.url, ...all.map((rank) => rank.healthUrl)]);
  }, 150_000);

  afterAll(async () => {
    await prometheus?.[Symbol.asyncDispose]();
    expect(await system?.stop()).toBe(0);
    await keys?.[Symbol.asyncDispose]();
  }, 90_000);

  test("every query of a board and every recorded series has data", async () => {
    const load = new AbortController();
    const clients = [0, 1].map((client) => keepAsking(system.url, tenant.key, client, counted, load.signal));
    const lacking = new Map(
      [
        ...BOARDS.flatMap(({ name, panels }) =>
          panels.flatMap(({ title, queries }) =>
            queries.map(({ expr }) => [`${name}: ${title}: ${expr}`, expr] as const),
          ),
        ),
        ...RECORDING_RULES.map(({ record }) => [record, record] as const),
      ].map(([where, expr]) => [where, expr.replaceAll(PANEL_WINDOW, WINDOW)]),
    );
    expect(lacking.size).toBeGreaterThan(60);
    await waitFor(
      "data for every query",
      async () => {
        for (const [where, expr] of lacking) {
          const values = await queryNow(prometheus.url, expr);
          if (values.some(Number.isFinite)) lacking.delete(where);
        }
        return lacking.size === 0 ? true : null;
      },
      60_000,
      () => [...lacking.keys()].join("\n"),
    ).finally(() => load.abort());
    await Promise.all(clients);
  }, 120_000);

  test("five numbers are those that the clients counted", async () => {
    expect(counted.requests).toBeGreaterThan(2);
    const expected: Readonly<Record<string, number>> = {
      'sum(margay_requests_total{outcome="ok"})': counted.requests,
      "sum(margay_prompt_tokens_total)": counted.promptTokens,
      "sum(margay_generated_tokens_total)": counted.generatedTokens,
      "sum(margay_time_to_first_token_seconds_count)": counted.requests,
      'sum(vllm:e2e_request_latency_seconds_bucket{le="+Inf"})': counted.requests,
    };
    for (const [expr, value] of Object.entries(expected)) {
      let last: readonly number[] = [];
      await waitFor(
        `${expr} to be ${value}`,
        async () => {
          last = await queryNow(prometheus.url, expr);
          return last[0] === value ? true : null;
        },
        15_000,
        () => `it is ${last}`,
      );
    }
  }, 90_000);
}

/** One request after the other until told to stop; what was asked for and answered is counted as the answers tell it. */
async function keepAsking(
  url: string,
  key: string,
  client: number,
  counted: Counted,
  signal: AbortSignal,
): Promise<void> {
  for (let turn = 0; !signal.aborted; turn++) {
    const content = `Client ${client} asks question ${turn}: ${"what is a margay? ".repeat(8)}`;
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
      body: JSON.stringify({ model: "nano", messages: [{ role: "user", content }], max_tokens: 24, ignore_eos: true }),
    });
    const body = (await response.json()) as { usage: { prompt_tokens: number; completion_tokens: number } };
    expect(response.status, JSON.stringify(body)).toBe(200);
    counted.requests++;
    counted.promptTokens += body.usage.prompt_tokens;
    counted.generatedTokens += body.usage.completion_tokens;
  }
}
