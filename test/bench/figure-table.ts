import {
  type Figure,
  type FigurePromise,
  type LimitLine,
  type MachineLine,
  type Spread,
  verdictOf,
} from "./native-figures.ts";
import { type Promises, print } from "./report.ts";

/** Four digits that count: 27.3, 1084, 0.062. */
export function spell(value: number | null): string {
  if (value === null) return "-";
  const size = Math.abs(value);
  return value.toFixed(size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

const percent = (value: number | null) => (value === null ? "-" : `${(100 * value).toFixed(1)} %`);
const range = ([median, least, most]: Spread) =>
  least === null || least === most ? spell(median) : `${spell(median)} (${spell(least)}..${spell(most)})`;

function bounds(promise: FigurePromise | undefined): readonly [string, string] {
  if (promise === undefined) return ["", ""];
  const text = promise.of === "share" ? percent : spell;
  const sign = promise.atMost ? "<= " : ">= ";
  return [sign + text(promise.floor), sign + text(promise.goal)];
}

/** A rival's figure, and how fast the operation is beside it. */
function beside(figure: Figure, rival: Spread | undefined): string {
  if (rival === undefined) return "";
  const [own, other] = [figure.value[0], rival[0]];
  const faster = own === null || other === null ? null : figure.unit === "us" ? other / own : own / other;
  return `${range(rival)}: ${percent(faster)} of it`;
}

const MARKS = { goal: "goal", floor: "floor", missed: "MISSED", disturbed: "DISTURBED", "": "" } as const;

function row(figure: Figure, rivals: readonly string[]): readonly string[] {
  const { name, path, threads, unit, value, limit, limitedBy, share, promise } = figure;
  return [
    name,
    `${path}, ${threads} thr`,
    `${range(value)} ${unit}`,
    limit === null ? "-" : `${spell(limit)} ${limitedBy}`,
    figure.disturbed ? "disturbed" : percent(share[0]),
    ...rivals.map((rival) => beside(figure, figure.rivals[rival])),
    ...bounds(promise),
    MARKS[verdictOf(figure)],
  ];
}

/** Prints the figures of each table, and whether what is promised of them held. */
export function printFigures(machine: MachineLine, limits: readonly LimitLine[], figures: readonly Figure[]): void {
  const cores = `${machine.cores} cores; ${machine.features}`;
  const measured = limits.map(({ name, threads, unit, value }) => `${name} x${threads} ${spell(value[0])} ${unit}`);
  for (const title of new Set(figures.map(({ table }) => table))) {
    const own = figures.filter(({ table }) => table === title);
    const rivals = [...new Set(own.flatMap((figure) => Object.keys(figure.rivals)))];
    print({
      title,
      machine: `machine: ${machine.processor}, ${cores}; load average ${spell(machine.load)}`,
      workload: "median (least..most) over rounds in which operation and limits take turns",
      rows: [
        ["", "code path", "median (spread)", "limit", "share", ...rivals, "floor", "goal", ""],
        ...own.map((figure) => row(figure, rivals)),
      ],
      notMeasured: "code paths that this machine cannot run",
    });
  }
  process.stdout.write(`\nlimits measured in the same process: ${measured.join(", ")}\n\n`);
}

/** Counts and lists the figures below their floor. */
export function checkFigures(figures: readonly Figure[], promises: Promises): void {
  const disturbed = figures.filter((figure) => figure.disturbed).length;
  if (disturbed > 0) process.stdout.write(`  ${disturbed} of ${figures.length} figures were disturbed: run again\n`);
  for (const figure of figures) {
    if (verdictOf(figure) !== "missed") continue;
    const { table, name, threads, promise, share, value, unit } = figure;
    const seen = promise!.of === "share" ? `${percent(share[0])} of the limit` : `${spell(value[0])} ${unit}`;
    const [floor, goal] = bounds(promise);
    promises.check(`${table}, ${name}, ${threads} thr: ${seen} (floor ${floor}, goal ${goal})`, false);
  }
}
