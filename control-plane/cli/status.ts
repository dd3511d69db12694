import { StatusQuery, StatusReport } from "#protocol/operator.ts";
import { subjects } from "#protocol/subjects.ts";
import { systemClock } from "#service/clock.ts";
import { operatorBus } from "./operator-bus.ts";

const ANSWER_MS = 5_000;
const REFRESH_MS = 1_000;

interface StatusOptions {
  /** Draw again every second until interrupted. */
  readonly watch: boolean;
  /** The report as one line of JSON. */
  readonly json: boolean;
}

/** Prints workers, pages and requests. Returns the exit code. */
export async function status(options: StatusOptions): Promise<number> {
  await using bus = await operatorBus();
  for (;;) {
    const report = await bus.request(
      subjects.operatorStatus(),
      StatusQuery,
      { kind: "status-query" },
      StatusReport,
      ANSWER_MS,
    );
    if (options.watch) process.stdout.write("\x1b[2J\x1b[H");
    process.stdout.write(options.json ? `${JSON.stringify(report)}\n` : render(report));
    if (!options.watch) return 0;
    await systemClock.sleep(REFRESH_MS);
  }
}

/** The report as a table. */
export function render(report: StatusReport): string {
  const ranks = [...report.ranks].sort((a, b) => (a.rankId < b.rankId ? -1 : 1));
  const workers = ranks.map((rank) => [
    rank.workerId,
    `${rank.rank}/${rank.ranks}`,
    rank.ranks === 1 ? "-" : rank.group === null ? "none" : `${rank.group.epoch} (${rank.group.size} ranks)`,
    rank.role,
    rank.state,
    rank.model,
    String(rank.epoch),
    `${rank.requests}/${rank.maxRequests}`,
    `${rank.blocksTotal - rank.blocksAvailable}/${rank.blocksTotal}`,
    `${(rank.lastBeatMs / 1000).toFixed(1)} s`,
    rank.healthUrl,
  ]);
  const models = report.models.map((model) => [
    model.name,
    String(model.waiting),
    String(model.running),
    String(model.wantedPrefill),
    String(model.wantedDecode),
  ]);
  return [
    `${report.gatewayId}, up ${Math.round(report.upMs / 1000)} s`,
    "",
    table(["MODEL", "WAITING", "RUNNING", "WANTED P", "WANTED D"], models),
    "",
    workers.length === 0
      ? "no workers: they start with the next request"
      : table(
          [
            "WORKER",
            "RANK",
            "GROUP",
            "ROLE",
            "STATE",
            "MODEL",
            "EPOCH",
            "REQUESTS",
            "BLOCKS HELD",
            "LAST BEAT",
            "HEALTH",
          ],
          workers,
        ),
    "",
  ].join("\n");
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((name, column) => Math.max(name.length, ...rows.map((row) => row[column]!.length)));
  return [head, ...rows]
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
