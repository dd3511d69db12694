import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { dump } from "js-yaml";
import { describe, expect, test } from "vitest";
import { METRICS } from "#protocol/metrics.ts";
import { ALERTS } from "../../control-plane/monitoring/alerts.ts";
import { grafanaBoard } from "../../control-plane/monitoring/board.ts";
import { BOARDS } from "../../control-plane/monitoring/boards.ts";
import { metricsTable, ruleGroups, runbooks } from "../../control-plane/monitoring/documents.ts";
import { TARGET_LABELS } from "../../control-plane/monitoring/promql.ts";
import { RECORDING_RULES } from "../../control-plane/monitoring/recording-rules.ts";
import { SETTINGS } from "../../control-plane/service/settings.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const boardFolder = "helm/files/dashboards";
const readme = "control-plane/monitoring/README.md";

/** Every file that is made from the list of metrics, by its path. */
function generated(): ReadonlyMap<string, string> {
  const table = /<!-- metrics -->[\s\S]*<!-- \/metrics -->/;
  const text = readFileSync(join(root, readme), "utf8");
  return new Map([
    ...BOARDS.map((board) => {
      const json = JSON.stringify(grafanaBoard(board), null, 1);
      return [join(boardFolder, `${board.name}.json`), `${json}\n`] as const;
    }),
    ["helm/files/rules.yaml", dump(ruleGroups(), { lineWidth: -1 })],
    ["helm/RUNBOOKS.md", runbooks()],
    [readme, text.replace(table, `<!-- metrics -->\n${metricsTable()}\n<!-- /metrics -->`)],
  ]);
}

/** WRITE_DOCS=1 writes the files instead of checking them. */
test("boards, rules, runbooks and the table of metrics are made from the metrics as they are", () => {
  const files = generated();
  if (process.env.WRITE_DOCS === "1") {
    rmSync(join(root, boardFolder), { recursive: true, force: true });
    mkdirSync(join(root, boardFolder), { recursive: true });
    for (const [path, text] of files) writeFileSync(join(root, path), text);
  }
  for (const [path, text] of files) expect(readFileSync(join(root, path), "utf8"), path).toBe(text);
  expect(readdirSync(join(root, boardFolder)).sort()).toEqual(BOARDS.map(({ name }) => `${name}.json`).sort());
});

/** Every query of boards and rules, with where it stands. */
const queries = [
  ...BOARDS.flatMap(({ name, panels }) =>
    panels.flatMap(({ title, queries: lines }) => lines.map(({ expr }) => ({ where: `${name}: ${title}`, expr }))),
  ),
  ...RECORDING_RULES.map(({ record, expr }) => ({ where: record, expr })),
  ...ALERTS.map(({ alert, expr }) => ({ where: alert, expr })),
];

const declared: Readonly<Record<string, { readonly type: string; readonly labels: object }>> = METRICS;
const recorded = new Set(RECORDING_RULES.map(({ record }) => record));

/** The declared name of a series: those of a histogram have endings. */
function metricOf(seriesName: string): string {
  const stem = seriesName.replace(/_(bucket|sum|count)$/, "");
  return declared[stem]?.type === "histogram" ? stem : seriesName;
}

describe("queries", () => {
  test.each(queries)("$where asks for metrics that there are, by labels that they have", ({ expr }) => {
    const names = [...expr.matchAll(/\b(margay[a-z_:0-9]+)/g)].map((match) => match[1]!);
    expect(names.length).toBeGreaterThan(0);
    for (const name of names) {
      if (name.includes(":")) expect(recorded).toContain(name);
      else expect(Object.keys(declared)).toContain(metricOf(name));
    }
    for (const [, name, selected] of expr.matchAll(/\b(margay[a-z_]+)\{([^}]*)\}/g)) {
      const allowed = [...Object.keys(declared[metricOf(name!)]!.labels), ...(name!.endsWith("_bucket") ? ["le"] : [])];
      for (const [, label] of selected!.matchAll(/([a-z_]+)=~?"/g)) expect(allowed).toContain(label);
    }
    for (const [, by, name] of expr.matchAll(/by \(([^)]*)\) \((?:rate\(|increase\()?(margay[a-z_]+)/g)) {
      const own = Object.keys(declared[metricOf(name!)]!.labels);
      const allowed = [...own, ...TARGET_LABELS, ...(name!.endsWith("_bucket") ? ["le"] : [])];
      for (const label of by!.split(", ")) expect(allowed).toContain(label);
    }
    expect(expr).not.toContain("vector(");
  });

  test("a legend names labels that its query keeps", () => {
    for (const { panels } of BOARDS) {
      for (const { queries: lines, title } of panels) {
        for (const { expr, legend } of lines) {
          for (const [, label] of legend.matchAll(/\{\{(\w+)\}\}/g))
            expect(expr, title).toMatch(new RegExp(`by \\([^)]*\\b${label}\\b`));
        }
      }
    }
  });
});

test("names of alerts, series and panels are each their own", () => {
  const names = [
    ...ALERTS.map(({ alert }) => alert),
    ...recorded,
    ...BOARDS.flatMap(({ name, panels }) => panels.map(({ title }) => `${name}: ${title}`)),
  ];
  expect(names).toEqual([...new Set(names)]);
});

test("runbooks name settings that there are", () => {
  for (const { alert, runbook } of ALERTS) {
    for (const [name] of runbook.matchAll(/MARGAY_[A-Z_]+/g)) expect(Object.keys(SETTINGS), alert).toContain(name);
  }
});
