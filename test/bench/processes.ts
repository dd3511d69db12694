import { readdirSync, readFileSync } from "node:fs";

/** One process of a running system. */
export interface Process {
  readonly pid: number;
  readonly name: "margay up" | "control plane" | "prefill" | "decode" | "nats-server" | "other";
}

/** A system's processes: the given one and all that descend from it. */
export function processTree(root: number): readonly Process[] {
  const children = new Map<number, number[]>();
  for (const entry of readdirSync("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    // "pid (name) state parent ...": the name may hold anything, parentheses included.
    const stat = readProc(`/proc/${entry}/stat`);
    const parent = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
    children.set(parent, [...(children.get(parent) ?? []), Number(entry)]);
  }
  const found: Process[] = [];
  const visit = (pid: number): void => {
    found.push({ pid, name: nameOf(readProc(`/proc/${pid}/cmdline`)) });
    for (const child of children.get(pid) ?? []) visit(child);
  };
  visit(root);
  return found;
}

function nameOf(commandLine: string): Process["name"] {
  if (commandLine.includes("margay.ts")) return "margay up";
  if (commandLine.includes("control-plane/main.ts")) return "control plane";
  if (commandLine.includes("prefill-node/main.ts")) return "prefill";
  if (commandLine.includes("decode-node/main.ts")) return "decode";
  return commandLine.includes("nats-server") ? "nats-server" : "other";
}

/** "" when it is gone. */
function readProc(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

/** CPU time of a system so far, milliseconds: per process, and of the engines' own threads over all processes. */
export interface CpuTime {
  readonly byProcess: ReadonlyMap<Process["name"], number>;
  readonly engine: number;
}

/** Threads that native code names are the engine's; every other thread is "around the engine". */
export function cpuTime(processes: readonly Process[]): CpuTime {
  const byProcess = new Map<Process["name"], number>();
  let engine = 0;
  for (const { pid, name } of processes) {
    for (const thread of listProc(`/proc/${pid}/task`)) {
      const folder = `/proc/${pid}/task/${thread}`;
      const ms = Number(readProc(`${folder}/schedstat`).split(" ")[0]) / 1e6;
      if (readProc(`${folder}/comm`).startsWith("margay-")) engine += ms;
      else byProcess.set(name, (byProcess.get(name) ?? 0) + ms);
    }
  }
  return { byProcess, engine };
}

export function cpuBetween(before: CpuTime, after: CpuTime): CpuTime {
  const spent = [...after.byProcess].map(([name, ms]) => [name, ms - (before.byProcess.get(name) ?? 0)] as const);
  return { byProcess: new Map(spent), engine: after.engine - before.engine };
}

/** All that is not the engine's, milliseconds. */
export function aroundEngine({ byProcess }: CpuTime): number {
  return [...byProcess.values()].reduce((sum, ms) => sum + ms, 0);
}

function listProc(folder: string): readonly string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

/** Memory of a process in bytes. */
export interface Memory {
  readonly resident: number;
  /** Heaps and stacks. */
  readonly anonymous: number;
  /** Mapped files: programs, libraries, weights. */
  readonly file: number;
  /** Shared memory: the KV pool. */
  readonly shared: number;
}

export function memoryOf(pid: number): Memory {
  const status = readProc(`/proc/${pid}/status`);
  const field = (name: string) => 1024 * Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(status)?.[1] ?? 0);
  return {
    resident: field("VmRSS"),
    anonymous: field("RssAnon"),
    file: field("RssFile"),
    shared: field("RssShmem"),
  };
}

/** A mapped file of a process, bytes. `proportional` is its share of pages that several processes map. */
export interface Mapping {
  readonly path: string;
  readonly size: number;
  readonly resident: number;
  readonly proportional: number;
  readonly privateBytes: number;
  readonly sharedBytes: number;
}

/** Mappings of files whose path matches, summed per file. */
export function mappings(pid: number, path: RegExp): readonly Mapping[] {
  const found = new Map<string, Mapping>();
  let at: string | null = null;
  for (const line of readProc(`/proc/${pid}/smaps`).split("\n")) {
    const header = /^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(.*)$/.exec(line);
    if (header !== null) {
      at = path.test(header[1]!) ? header[1]! : null;
      continue;
    }
    const field = /^(\w+):\s+(\d+) kB$/.exec(line);
    if (at === null || field === null) continue;
    const name = FIELDS[field[1]!];
    if (name === undefined) continue;
    const nothing = { path: at, size: 0, resident: 0, proportional: 0, privateBytes: 0, sharedBytes: 0 };
    const known = found.get(at) ?? nothing;
    found.set(at, { ...known, [name]: known[name] + 1024 * Number(field[2]) });
  }
  return [...found.values()];
}

const FIELDS: Readonly<Record<string, Exclude<keyof Mapping, "path">>> = {
  Size: "size",
  Rss: "resident",
  Pss: "proportional",
  Private_Clean: "privateBytes",
  Private_Dirty: "privateBytes",
  Shared_Clean: "sharedBytes",
  Shared_Dirty: "sharedBytes",
};
