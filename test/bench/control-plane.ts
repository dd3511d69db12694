import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { splitHashes } from "#protocol/block-hash.ts";
import type { ModelName, RankId } from "#protocol/ids.ts";
import { BLOCK_HASH_BYTES } from "#protocol/kv.ts";
import { EMPTY_FLEET, type FleetSnapshot, withHeartbeat } from "../../control-plane/fleet/fleet.ts";
import { PrefixIndex } from "../../control-plane/fleet/prefix-index.ts";
import { type PlacementQuery, place } from "../../control-plane/placement/place.ts";
import { beatOf, loadOf } from "../support/fleet-of.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";
import type { BenchOptions } from "./options.ts";
import { processTree } from "./processes.ts";
import { machineLine, print } from "./report.ts";

const RANKS = 1_000;
const PAGES = 1_000_000;
const PROMPT_BLOCKS = 64;
const PLACEMENT_MS = 1;
const WAITING = 10_000;
const WAITING_MIB = 300;
/** Connections opened at once: more of them overflow the server's backlog. */
const TOGETHER = 100;

/** What the control plane itself costs: placing a request in a large fleet, and holding many that wait. */
export async function benchControlPlane(options: BenchOptions): Promise<void> {
  placement(options);
  await waiting(options);
}

function placement(options: BenchOptions): void {
  const fleet = fleetOf(RANKS);
  const prefixes = new PrefixIndex();
  const known: string[][] = [];
  for (const rankId of fleet.ranks.keys()) {
    const hashes = randomBytes((PAGES / RANKS) * BLOCK_HASH_BYTES);
    prefixes.restore({ kind: "kv-snapshot", rankId, epoch: 1, seq: 0, hashes });
    known.push([...splitHashes(hashes)].slice(0, PROMPT_BLOCKS));
  }
  const samples: number[] = [];
  for (let i = -200; i < (options.quick ? 500 : 5_000); i++) {
    // Every second prompt begins with what some rank has.
    const hashes =
      i % 2 === 0 ? known[Math.abs(i * 7) % RANKS]! : [...splitHashes(randomBytes(PROMPT_BLOCKS * BLOCK_HASH_BYTES))];
    const promptTokens = PROMPT_BLOCKS * 64 + 1;
    const query: PlacementQuery = {
      ...{ model: "nano" as ModelName, hashes: () => hashes, promptTokens, wholeTokens: promptTokens + 256 },
      ...{ avoid: new Set<RankId>(), localTokens: 0 },
    };
    const from = performance.now();
    const placed = place(fleet, prefixes, query, 1_000);
    const ms = performance.now() - from;
    if (placed.kind !== "split") throw new Error(`a request was not placed: ${placed.kind}`);
    if (i >= 0) samples.push(ms);
  }
  const sorted = samples.toSorted((a, b) => a - b);
  const at = (share: number): number => sorted[Math.floor(share * sorted.length)]!;
  print({
    title: `Placement of one request over ${RANKS} ranks and ${PAGES} cached pages`,
    machine: machineLine({ isa: "none", threads: 0 }),
    workload: `half of the ranks for each role; prompts of ${PROMPT_BLOCKS} blocks, every second one cached somewhere; ${samples.length} samples`,
    rows: [
      ["milliseconds", "p50", "p99", "most"],
      ["placement", ...[at(0.5), at(0.99), sorted.at(-1)!].map((ms) => ms.toFixed(3))],
    ],
    notMeasured: "hashing the prompt, and everything before and after the choice.",
  });
  options.promises.check(
    `a placement takes at most ${PLACEMENT_MS} ms (p99): ${at(0.99).toFixed(3)} ms`,
    at(0.99) <= PLACEMENT_MS,
  );
}

function fleetOf(ranks: number): FleetSnapshot {
  let fleet = EMPTY_FLEET;
  for (let i = 0; i < ranks; i++) {
    const load = loadOf({ requests: i % 7, maxRequests: 64, blocksTotal: 4_096, blocksAvailable: 4_096 - (i % 100) });
    fleet = withHeartbeat(fleet, beatOf(`${i % 2 === 0 ? "p" : "d"}${i}`, { load }), 0, 0);
  }
  return fleet;
}

/** Requests that wait for workers that never get anywhere: they are stopped as soon as they are there. */
async function waiting(options: BenchOptions): Promise<void> {
  const count = options.quick ? 1_000 : WAITING;
  const system = await startSystem({
    ...{ MARGAY_BACKEND: options.backend, MARGAY_PREFILL: "0..1", MARGAY_DECODE: "0..1", MARGAY_LOG_LEVEL: "info" },
    ...{ MARGAY_MAX_WAITING: String(2 * count), MARGAY_WAIT_SECONDS: "600" },
  });
  const sockets: Socket[] = [];
  const stopped: number[] = [];
  try {
    const before = residentMib(system);
    sockets.push(await ask(system.url, 0));
    await waitFor("both workers", async () => (workersOf(system).length >= 2 ? true : null), 20_000);
    for (const pid of workersOf(system)) {
      process.kill(pid, "SIGSTOP");
      stopped.push(pid);
    }
    while (sockets.length < count) {
      const some = Math.min(TOGETHER, count - sockets.length);
      sockets.push(...(await Promise.all(Array.from({ length: some }, (_, i) => ask(system.url, sockets.length + i)))));
    }
    await waitFor("all of them to wait", async () => ((await waitingAt(system)) >= count ? true : null), 60_000);
    const after = residentMib(system);
    print({
      title: `${count} requests that wait`,
      machine: machineLine({ isa: options.backend, threads: 0 }),
      workload: "a connection each, prompts of about 100 tokens, no workers",
      rows: [
        ["control plane, resident MiB", "idle", `${count} waiting`],
        ["", before.toFixed(0), after.toFixed(0)],
      ],
      notMeasured: "streams, whose comments are sent meanwhile.",
    });
    options.promises.check(
      `${count} waiting requests in at most ${WAITING_MIB} MiB: ${after.toFixed(0)}`,
      after <= WAITING_MIB,
    );
  } finally {
    for (const socket of sockets) socket.destroy();
    for (const pid of stopped) process.kill(pid, "SIGCONT");
    await system.stop();
  }
}

function workersOf(system: System): readonly number[] {
  return processTree(system.pid)
    .filter(({ name }) => name === "prefill" || name === "decode")
    .map(({ pid }) => pid);
}

async function waitingAt(system: System): Promise<number> {
  const samples = await system.metric(system.url, "margay_waiting_requests");
  return [...samples.values()].reduce((sum, value) => sum + value, 0);
}

/** Resolves when the request is sent; nobody reads the answer. */
async function ask(url: string, number: number): Promise<Socket> {
  const { hostname, port, host } = new URL(url);
  const prompt = Array.from({ length: 25 }, (_, i) => `word ${number + i}`).join(" ");
  const body = JSON.stringify({ model: "nano", prompt, max_tokens: 16 });
  const socket = connect({ host: hostname, port: Number(port) });
  socket.on("error", () => {});
  await new Promise<void>((resolve, reject) => socket.once("connect", resolve).once("error", reject));
  const head = `POST /v1/completions HTTP/1.1\r\nhost: ${host}\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n`;
  await new Promise<void>((resolve) => socket.write(head + body, () => resolve()));
  return socket;
}

function residentMib(system: System): number {
  const plane = processTree(system.pid).find(({ name }) => name === "control plane");
  const kib = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${plane!.pid}/status`, "utf8"))![1];
  return Number(kib) / 1024;
}
