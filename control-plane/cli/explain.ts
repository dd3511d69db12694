import { ExplainQuery, ExplainReport } from "#protocol/scaling.ts";
import { subjects } from "#protocol/subjects.ts";
import { operatorBus } from "./operator-bus.ts";

const ANSWER_MS = 5_000;

/** Prints why there are as many workers as there are. Returns the exit code. */
export async function explain(json: boolean): Promise<number> {
  await using bus = await operatorBus();
  const query = { kind: "explain-query" } as const;
  const report = await bus.request(subjects.operatorExplain(), ExplainQuery, query, ExplainReport, ANSWER_MS);
  process.stdout.write(json ? `${JSON.stringify(report)}\n` : describe(report));
  return 0;
}

/** The report in words. */
export function describe({ models }: ExplainReport): string {
  return models
    .map(({ model, outlook, plan, decisions, failure }) =>
      [
        model,
        ...outlook.map(
          ({ role, wanted, ready, phase }) =>
            `  ${role.padEnd(7)} ${ready} of ${wanted} ready${phase === "ready" ? "" : `, the next is ${phase}`}`,
        ),
        ...(failure === null ? [] : [`  workers do not come: ${failure}`]),
        ...(plan === null ? ["  no plan yet"] : planLines(plan)),
        ...(decisions.length === 0 ? ["  no decision yet"] : ["  decisions, the latest first:"]),
        ...decisions.map(
          ({ agoMs, decision: { role, from, to, reason } }) =>
            `    ${seconds(agoMs)} ago  ${role} ${from} -> ${to}: ${reason}`,
        ),
        "",
      ].join("\n"),
    )
    .join("\n");
}

function planLines({ agoMs, plan }: NonNullable<ExplainReport["models"][number]["plan"]>): readonly string[] {
  const { prefill, decode, from, keepAlive } = plan;
  const told = (value: number | null, digits: number, unit: string): string =>
    value === null ? `unknown ${unit}` : `${value.toFixed(digits)} ${unit}`;
  return [
    `  plan, ${seconds(agoMs)} ago: prefill ${prefill.groups} (${prefill.reason}), decode ${decode.groups} (${decode.reason})`,
    `    from ${told(from.arrivalsPerSecond, 2, "requests/s")}, ${told(from.prefillSeconds, 3, "s of prefill each")}, ${told(from.streamSeconds, 2, "s of decoding each")}, ` +
      `${from.streams} streams, ${told(from.streamsPerGroup, 0, "to a worker")}, ${told(from.late === null ? null : from.late * 100, 1, "% late first tokens")}, ` +
      `a start takes ${seconds(from.coldStartMs)}`,
    `  keep-alive: ${keepAlive}`,
  ];
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
}
