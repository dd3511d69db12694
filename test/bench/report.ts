import { readFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";

/** What a set of samples says. */
export interface Summary {
  readonly count: number;
  readonly p50: number;
  readonly p95: number;
  readonly least: number;
  readonly most: number;
}

export function summary(samples: readonly number[]): Summary {
  const sorted = [...samples].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
  return { count: sorted.length, p50: at(0.5), p95: at(0.95), least: at(0), most: at(1) };
}

/** `p50 (least..most)` with the given number of digits. */
export function spread({ p50, least, most }: Summary, digits: number): string {
  return `${p50.toFixed(digits)} (${least.toFixed(digits)}..${most.toFixed(digits)})`;
}

/** Where and when figures were measured: they mean nothing without it. */
export function machineLine(engine: { readonly isa: string; readonly threads: number }): string {
  const [first] = cpus();
  const load = loadavg()
    .map((value) => value.toFixed(2))
    .join(" ");
  const hypervisor = /\bhypervisor\b/.test(readFileSync("/proc/cpuinfo", "utf8")) ? ", virtual machine" : "";
  return (
    `machine: ${first?.model ?? "unknown processor"}, ${cpus().length} cores${hypervisor}; ` +
    `engine: ${engine.isa}, ${engine.threads} threads; Node ${process.versions.node}; load average ${load}`
  );
}

export interface Table {
  readonly title: string;
  readonly machine: string;
  readonly workload: string;
  /** The first row names the columns. */
  readonly rows: readonly (readonly string[])[];
  readonly notMeasured: string;
}

/** Prints a table and everything that is needed to read it. */
export function print({ title, machine, workload, rows, notMeasured }: Table): void {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  const line = (row: readonly string[]) =>
    `  ${row.map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!))).join("  ")}`;
  const [head, ...body] = rows;
  const rule = `  ${"-".repeat(widths.reduce((sum, width) => sum + width + 2, -2))}`;
  const text = [title, machine, `workload: ${workload}`, "", line(head!), rule, ...body.map(line), ""];
  process.stdout.write(`\n${[...text, `not measured: ${notMeasured}`].join("\n")}\n`);
}

/** Says whether a promise held, and remembers when one did not. */
export class Promises {
  readonly broken: string[] = [];

  check(what: string, held: boolean): void {
    process.stdout.write(`  ${held ? "holds " : "BROKEN"}  ${what}\n`);
    if (!held) this.broken.push(what);
  }
}
