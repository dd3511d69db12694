import { stream } from "../support/client.ts";
import { seeded } from "../support/storm.ts";
import { type System, startSystem } from "../support/system.ts";
import { collectGarbage } from "./collect-garbage.ts";
import type { BenchOptions } from "./options.ts";
import { mappings, memoryOf, processTree } from "./processes.ts";
import { machineLine, print } from "./report.ts";

const EARLY = 200;
const LATE = 2_000;
const CLIENTS = 16;
/** Idle time before memory is read: what the last requests left is let go. */
const SETTLE_MS = 2_000;
/** What may lie between two readings of the same steady state: compiled code, fragments of the heap, the server's buffers. */
const NOISE_BYTES = 16 * 1024 * 1024;
/** Of live heap alone. */
const HEAP_NOISE_BYTES = 3 * 1024 * 1024;
const MIB = 1024 * 1024;

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const mib = (bytes: number) => (bytes / MIB).toFixed(1);

interface Reading {
  readonly name: string;
  readonly pid: number;
  readonly resident: number;
  /** Before garbage was collected. */
  readonly withGarbage: number;
  /** What lives in the JavaScript heap; null: it has none. */
  readonly heap: number | null;
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
    const early = await readings(system);
    const many = options.quick ? 2 * EARLY : LATE;
    await requests(system, EARLY, many);
    await pause(SETTLE_MS);
    const late = await readings(system);
    const pairs = early.map((before) => [before, late.find(({ pid }) => pid === before.pid)] as const);
    const live = ({ heap }: Reading) => (heap === null ? "-" : mib(heap));
    print({
      title: `Memory after ${EARLY} and after ${many} requests, MiB`,
      machine: machineLine({ isa: options.backend, threads: 0 }),
      workload: `mixed short requests (chat and text) of ${CLIENTS} clients, KV pool 16 MiB; garbage collected before each reading`,
      rows: [
        ["", `resident, ${EARLY}`, `resident, ${many}`, `live heap, ${EARLY}`, `live heap, ${many}`, "with garbage"],
        ...pairs.map(([before, after]) =>
          after === undefined
            ? [before.name, mib(before.resident), "gone"]
            : [
                before.name,
                mib(before.resident),
                mib(after.resident),
                live(before),
                live(after),
                mib(after.withGarbage),
              ],
        ),
      ],
      notMeasured: "memory of the kernel (sockets, page cache). One reading each.",
    });
    for (const [before, after] of pairs) {
      const same =
        after !== undefined &&
        after.resident - before.resident <= NOISE_BYTES &&
        (after.heap ?? 0) - (before.heap ?? 0) <= HEAP_NOISE_BYTES;
      options.promises.check(`${before.name}: as large after ${many} requests as after ${EARLY}`, same);
    }
  } finally {
    await system.stop();
  }
}

async function readings(system: System): Promise<readonly Reading[]> {
  const list: Reading[] = [];
  for (const { pid, name } of processTree(system.pid)) {
    const { resident: withGarbage } = memoryOf(pid);
    const heap = name === "nats-server" || name === "other" ? null : await collectGarbage(pid);
    list.push({ name, pid, resident: memoryOf(pid).resident, withGarbage, heap });
  }
  return list;
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
