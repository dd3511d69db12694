import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { dump } from "js-yaml";
import { expect, test } from "vitest";
import { ALERTS } from "../../control-plane/monitoring/alerts.ts";
import { ruleGroups } from "../../control-plane/monitoring/documents.ts";
import { prometheusTool } from "../support/prometheus-tools.ts";

const found = prometheusTool("promtool");
const promtool = "path" in found ? found.path : "";
/** A test that needs promtool; where there is none it is skipped and says why. */
const promtoolTest =
  "lack" in found
    ? (name: string, _: unknown, __?: number) => test.skip(`${name} (not run: ${found.lack})`, () => {})
    : test;

/** Values of series, a minute apart, in promtool's notation: `0+60x30` rises from 0 by 60, thirty times. */
type Input = Readonly<Record<string, string>>;

/** Per alert: series under which it fires, and the like under which it does not. */
const CASES: Readonly<Record<string, { readonly fires: Input; readonly rests: Input; readonly at?: string }>> = {
  MargayErrorsBurnFast: { fires: requests(20, 100), rests: requests(6, 100) },
  MargayErrorsBurnSlow: { fires: requests(4, 100), rests: requests(2, 100), at: "7h" },
  MargayFirstTokenBurnFast: { fires: firstTokens(10, 100), rests: firstTokens(60, 100) },
  MargayFirstTokenBurnSlow: { fires: firstTokens(60, 100), rests: firstTokens(80, 100), at: "7h" },
  MargayPaceBurnFast: { fires: paces(10, 100), rests: paces(60, 100) },
  MargayPaceBurnSlow: { fires: paces(60, 100), rests: paces(80, 100), at: "7h" },
  MargayRequestsWait: {
    fires: { 'margay_waiting_requests{model="nano"}': "3x90", 'margay_generated_tokens_total{model="nano"}': "7x90" },
    rests: {
      'margay_waiting_requests{model="nano"}': "3x90",
      'margay_generated_tokens_total{model="nano"}': "7+60x90",
    },
  },
  MargayNoLeader: {
    fires: { 'margay_leader{instance="a"}': "0x90", 'margay_leader{instance="b"}': "0x90" },
    rests: { 'margay_leader{instance="a"}': "0x90", 'margay_leader{instance="b"}': "1x90" },
  },
  MargayApiServerAway: {
    fires: { margay_api_server_away_seconds: "0+60x90" },
    rests: { margay_api_server_away_seconds: "100x90" },
  },
  MargayWorkersCrash: {
    fires: { 'margay_worker_restarts_total{role="decode"}': "0+1x90" },
    rests: { 'margay_worker_restarts_total{role="decode"}': "2x90" },
  },
  MargayRanksLost: {
    fires: { 'margay_workers{role="decode",state="lost"}': "1x90" },
    rests: {
      'margay_workers{role="decode",state="lost"}': "0x70 1x5 0x15",
      'margay_workers{role="decode",state="ready"}': "1x90",
    },
  },
  MargayTransfersFail: {
    fires: { 'margay_retries_total{code="transfer_failed"}': "0+6x90", ...requests(0, 100) },
    rests: { 'margay_retries_total{code="transfer_failed"}': "0+4x90", ...requests(0, 100) },
  },
  MargayKvScarce: {
    fires: { 'margay_kv_used_share{role="decode"}': "1x90", margay_preemptions_total: "0+5x90" },
    rests: { 'margay_kv_used_share{role="decode"}': "1x90", margay_preemptions_total: "5x90" },
  },
  MargayBusLost: {
    fires: { 'margay_bus_connected{instance="a"}': "0x90" },
    rests: { 'margay_bus_connected{instance="a"}': "1x90" },
  },
  MargayBusDenied: {
    fires: { 'margay_bus_denied_total{instance="a",operation="publish"}': "0+1x90" },
    rests: { 'margay_bus_denied_total{instance="a",operation="publish"}': "1x90" },
  },
  MargayExpertsUneven: {
    fires: { 'margay_expert_imbalance{worker="w",map="after"}': "1.8x90" },
    rests: {
      'margay_expert_imbalance{worker="w",map="after"}': "1.3x90",
      'margay_expert_imbalance{worker="w",map="before"}': "3x90",
    },
  },
  MargayGroupsFail: {
    fires: { 'margay_groups_formed_total{role="decode",outcome="failed"}': "0+1x90" },
    rests: { 'margay_groups_formed_total{role="decode",outcome="whole"}': "0+1x90" },
  },
  MargayLedgerLoses: {
    fires: { 'margay_ledger_lost_total{instance="a"}': "0+1x90" },
    rests: { 'margay_ledger_lost_total{instance="a"}': "1x90" },
  },
  MargayKeysFileUnusable: {
    fires: { 'margay_keys_file_valid{instance="a"}': "0x90" },
    rests: { 'margay_keys_file_valid{instance="a"}': "1x90" },
  },
};

/** Of `all` requests a minute so many end by the server's fault. */
function requests(failed: number, all: number): Input {
  return {
    'margay_requests_total{model="nano",outcome="internal"}': `0+${failed}x500`,
    'margay_requests_total{model="nano",outcome="ok"}': `0+${all - failed}x500`,
  };
}

function firstTokens(within: number, all: number): Input {
  return histogram("margay_time_to_first_token_seconds", 10, within, all);
}

function paces(within: number, all: number): Input {
  return histogram("margay_time_per_output_token_seconds", 0.1, within, all);
}

/** Of `all` observations a minute so many within `bound`. */
function histogram(name: string, bound: number, within: number, all: number): Input {
  return {
    [`${name}_bucket{model="nano",le="${bound}"}`]: `0+${within}x500`,
    [`${name}_bucket{model="nano",le="+Inf"}`]: `0+${all}x500`,
    [`${name}_count{model="nano"}`]: `0+${all}x500`,
  };
}

test("every alert has a case in which it fires and one in which it does not", () => {
  expect(Object.keys(CASES).sort()).toEqual(ALERTS.map(({ alert }) => alert).sort());
});

promtoolTest(
  "alerts fire when they should and not otherwise",
  () => {
    const folder = mkdtempSync(join(tmpdir(), "margay-alerts-"));
    const files = Object.entries(CASES).map(([alert, { fires, rests, at = "90m" }]) => {
      writeFileSync(join(folder, `${alert}.rules.yaml`), dump(rulesOf(alert)));
      const file = join(folder, `${alert}.yaml`);
      const tests = [testCase(alert, fires, at, true), testCase(alert, rests, at, false)];
      const evaluation = at.endsWith("h") ? "5m" : "1m";
      writeFileSync(file, dump({ rule_files: [`${alert}.rules.yaml`], evaluation_interval: evaluation, tests }));
      return file;
    });
    const run = spawnSync(promtool, ["test", "rules", ...files], { encoding: "utf8", timeout: 100_000 });
    rmSync(folder, { recursive: true, force: true });
    expect(run.stderr).toBe("");
    expect(run.stdout.match(/SUCCESS/g)).toHaveLength(files.length);
    expect(run.status).toBe(0);
  },
  120_000,
);

/** One alert and what is recorded for it: promtool computes every rule of a file at every step. */
function rulesOf(alert: string): object {
  const { groups } = ruleGroups();
  const [recorded, alerts] = groups.map(({ rules }) => rules);
  const own = alerts!.filter((rule) => "alert" in rule && rule.alert === alert);
  const needed = recorded!.filter((rule) => "record" in rule && own[0]!.expr.includes(rule.record));
  return { groups: [{ name: "one", rules: [...needed, ...own] }] };
}

/**
 * One case for promtool, which compares labels and annotations of what fires to the letter: the count of firing series is
 * asked for instead.
 */
function testCase(alert: string, input: Input, at: string, fires: boolean): object {
  return {
    name: `${alert} ${fires ? "fires" : "rests"}`,
    interval: "1m",
    input_series: Object.entries(input).map(([series, values]) => ({ series, values })),
    promql_expr_test: [
      {
        expr: `count(ALERTS{alertname="${alert}",alertstate="firing"})`,
        eval_time: at,
        exp_samples: fires ? [{ labels: "{}", value: 1 }] : [],
      },
    ],
  };
}
