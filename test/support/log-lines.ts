import type { System } from "./system.ts";

export interface LogLine {
  /** Epoch milliseconds. */
  readonly timeMs: number;
  readonly line: string;
}

/** The lines of a system's log with this message, of those that came after its first `from` characters. */
export function logLines(system: System, message: string, from = 0): readonly LogLine[] {
  return system
    .log()
    .slice(from)
    .split("\n")
    .filter((line) => line.includes(`"message":"${message}"`))
    .map((line) => ({ timeMs: Date.parse((JSON.parse(line) as { time: string }).time), line }));
}
