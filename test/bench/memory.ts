import { stream } from "../support/client.ts";
import { seeded } from "../support/storm.ts";
import { type System, startSystem } from "../support/system.ts";
import type { BenchOptions } from "./nano.ts";
import { mappings, memoryOf, processTree } from "./processes.ts";
import { machineLine, print } from "./report.ts";

const EARLY = 200;
const LATE = 2_000;
const CLIENTS = 16;
/** Idle seconds before memory is read: garbage of the last requests goes, freed pages return. */
const SETTLE_MS = 5_000;
/** What may lie between two readings of the same steady state: the collector's heaps breathe. */
const NOISE_BYTES = 24 * 1024 * 1024;
const MIB = 1024 * 1024;

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const mib = (bytes: number) => (bytes / MIB).toFixed(1);

interface Reading {
  readonly name: string;
  readonly pid: number;
  readonly resident: number;
  readonly anonymous: number;
}

/** What a system of one prefill and one decode process holds in memory, early and late. */
export async function benchMemory(options: BenchOptions): Promise<void> {
  // A small pool, so that it is full, and all of it touched, long before the first reading.
  const system = await startSystem({ MARGAY_BACKEND: options.backend, MARGAY_THREADS: "0", MARGAY_KV_MIB: "16" });
  try {
    await Promise.all([system.ready("prefill", 1), system.ready("decode", 1)]);
    await requests(system, 0, EARLY);
    await pause(SETTLE_MS);
    weights(system, options);
    const early = readings(system);
    await requests(system, EARLY, options.quick ? 2 * EARLY : LATE);
    await pause(SETTLE_MS);
    const late = readings(system);
    const of = (list: readonly Reading[], pid: number) => list.find((reading) => reading.pid === pid);
    print({
      title: `Resident memory after ${EARLY} and after ${LATE} requests, MiB`,
      machine: machineLine({ isa: options.backend, threads: 0 }),
      workload: `mixed short requests (chat and text, streamed or not) of ${CLIENTS} clients, KV pool 16 MiB`,
      rows: [
        ["", `after ${EARLY}`, `after ${LATE}`, "growth", "of it heaps"],
        ...early.map((before) => {
          const after = of(late, before.pid) ?? before;
          return [
            before.name,
            mib(before.resident),
            mib(after.resident),
            mib(after.resident - before.resident),
            mib(after.anonymous - before.anonymous),
          ];
        }),
      ],
      notMeasured:
        "memory of the kernel (sockets, page cache). One reading each: the collector decides when heaps shrink.",
    });
    for (const before of early) {
      const growth = (of(late, before.pid)?.resident ?? Number.POSITIVE_INFINITY) - before.resident;
      options.promises.check(
        `${before.name}: as large after ${LATE} requests as after ${EARLY}`,
        growth <= NOISE_BYTES,
      );
    }
  } finally {
    await system.stop();
  }
}

function readings(system: System): readonly Reading[] {
  return processTree(system.pid).map(({ pid, name }) => ({ name, pid, ...memoryOf(pid) }));
}

/** Both workers map one file of packed weights, and neither has pages of it to itself. */
function weights(system: System, options: BenchOptions): void {
  const workers = processTree(system.pid).filter(({ name }) => name === "prefill" || name === "decode");
  const rows = workers.flatMap(({ pid, name }) => mappings(pid, /\/packed\//).map((mapping) => ({ name, mapping })));
  print({
    title: "Packed weights in the workers' memory, MiB (from /proc/PID/smaps)",
    machine: machineLine({ isa: options.backend, threads: 0 }),
    workload: `after ${EARLY} requests`,
    rows: [
      ["", "mapped", "resident", "proportional", "shared", "private"],
      ...rows.map(({ name, mapping }) => [
        name,
        ...[mapping.size, mapping.resident, mapping.proportional, mapping.sharedBytes, mapping.privateBytes].map(mib),
      ]),
      ["both", "", "", mib(rows.reduce((sum, { mapping }) => sum + mapping.proportional, 0)), "", ""],
    ],
    notMeasured: "the checkpoint's own files in the page cache, read once for packing.",
  });
  const [first] = rows;
  const files = new Set(rows.map(({ mapping }) => mapping.path));
  const proportional = rows.reduce((sum, { mapping }) => sum + mapping.proportional, 0);
  options.promises.check(
    "the weights of P and D together occupy one copy",
    workers.length === 2 && rows.length === 2 && files.size === 1 && proportional <= 1.01 * first!.mapping.size,
  );
}

/** Requests numbered `from` to `to`, each of which must end well. */
async function requests(system: System, from: number, to: number): Promise<void> {
  const random = seeded(from + 1);
  let next = from;
  const client = async () => {
    while (next < to) {
      const number = next++;
      const words = Array.from({ length: 1 + Math.floor(random() * 60) }, () => `w${Math.floor(random() * 50)}`).join(
        " ",
      );
      const common = { model: "nano", max_tokens: 1 + Math.floor(random() * 24), temperature: 0.8, seed: number };
      const answer =
        number % 3 === 0
          ? await stream(system.url, "/v1/chat/completions", {
              ...common,
              messages: [{ role: "user", content: words }],
            })
          : await stream(system.url, "/v1/completions", { ...common, prompt: words });
      if (answer.error !== null || !answer.ended) throw new Error(`request ${number}: ${JSON.stringify(answer.error)}`);
    }
  };
  await Promise.all(Array.from({ length: CLIENTS }, client));
}
