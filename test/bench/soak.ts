import { parseArgs } from "node:util";
import { poolStates } from "../support/pools.ts";
import { seeded, storm } from "../support/storm.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";
import { collectGarbage } from "./collect-garbage.ts";
import { processTree } from "./processes.ts";
import { Promises } from "./report.ts";

/**
 * `npm run soak [-- --minutes N] [--seed N]`: requests of many clients, many of whom leave, while every few seconds a
 * worker process is killed. Ends by itself; code 1 when a promise is broken.
 */
const CLIENTS = 24;
const ROUND = 200;
const CUT_SHARE = 0.3;
const KILL_EVERY_MS = 5_000;
/** Promised: 5 s. */
const HELD_MS = 15_000;
/** What lives in the control plane's heap may grow by this, compiled code included, after the first tenth of the time. */
const GROWTH_BYTES = 6 * 1024 * 1024;

const { values } = parseArgs({
  options: { minutes: { type: "string", default: "10" }, seed: { type: "string", default: "1" } },
});
const minutes = Number(values.minutes);
const seed = Number(values.seed);
if (!(minutes > 0 && minutes <= 24 * 60) || !Number.isInteger(seed)) {
  process.stderr.write("usage: npm run soak [-- --minutes N (at most 1440)] [--seed N]\n");
  process.exit(2);
}

const promises = new Promises();
const say = (text: string) => void process.stdout.write(`${text}\n`);
const system = await startSystem({
  MARGAY_BACKEND: "cpu",
  MARGAY_PREFILL: "2..2",
  MARGAY_DECODE: "2..2",
  MARGAY_LOG_LEVEL: "error",
});
try {
  await Promise.all([system.ready("prefill", 2), system.ready("decode", 2)]);
  await soak(system);
} finally {
  promises.check("the system ends cleanly", (await system.stop()) === 0);
}
process.exit(promises.broken.length === 0 ? 0 : 1);

async function soak(running: System): Promise<void> {
  const endMs = performance.now() + minutes * 60_000;
  const killer = startKiller(running);
  let finished = 0;
  let cut = 0;
  const failures: string[] = [];
  const sizes: number[] = [];
  try {
    for (let round = 0; performance.now() < endMs; round++) {
      const report = await storm({
        ...{ url: running.url, requests: ROUND, clients: CLIENTS, cutShare: CUT_SHARE },
        seed: seed + round,
      });
      finished += report.finished;
      cut += report.cut;
      failures.push(...report.failures);
      sizes.push(await controlPlaneHeap(running));
      const left = Math.max(0, (endMs - performance.now()) / 60_000);
      say(
        `${finished} finished, ${cut} cut, ${failures.length} failed, ${killer.killed} workers killed; ` +
          `heap of the control plane ${(sizes.at(-1)! / 2 ** 20).toFixed(1)} MiB; ${left.toFixed(1)} min to go`,
      );
    }
  } finally {
    killer.stop();
  }
  for (const failure of failures.slice(0, 20)) say(`  ${failure}`);
  promises.check(`no request failed that its client did not leave (${finished} finished)`, failures.length === 0);
  promises.check(
    `faults took effect: ${killer.killed} workers killed, ${cut} streams cut`,
    killer.killed > 0 && cut > 0,
  );
  await Promise.all([running.ready("prefill", 2), running.ready("decode", 2)]);
  promises.check("nothing is held once all have ended", await nothingHeld(running));
  const early = sizes[Math.min(sizes.length - 1, Math.ceil(sizes.length / 10))]!;
  promises.check("the control plane did not grow", sizes.at(-1)! - early <= GROWTH_BYTES);
}

/** Kills a random worker that is ready, again and again, until stopped. */
function startKiller(running: System): { readonly killed: number; stop(): void } {
  const random = seeded(seed);
  let killed = 0;
  let looking = false;
  const timer = setInterval(async () => {
    if (looking) return;
    looking = true;
    try {
      const ready = (await running.ranks()).filter((rank) => rank.state === "ready");
      const victim = ready[Math.floor(random() * ready.length)];
      if (victim === undefined) return;
      process.kill(victim.pid, "SIGKILL");
      killed++;
    } catch {
      // It ended by itself meanwhile, or the status could not be had this time.
    } finally {
      looking = false;
    }
  }, KILL_EVERY_MS);
  return {
    get killed() {
      return killed;
    },
    stop: () => clearInterval(timer),
  };
}

async function nothingHeld(running: System): Promise<boolean> {
  const free = async () => {
    const pools = [...(await poolStates(running)).values()];
    const held = pools.flatMap((counts) =>
      Object.entries(counts).filter(([state, count]) => state !== "free" && state !== "cached" && count > 0),
    );
    return pools.length > 0 && held.length === 0 ? true : null;
  };
  return waitFor("all blocks to be free or cached", free, HELD_MS).catch(() => false);
}

/** Bytes that live on after a collection. */
async function controlPlaneHeap(running: System): Promise<number> {
  const found = processTree(running.pid).find(({ name }) => name === "control plane");
  if (found === undefined) throw new Error("the control plane is gone");
  return collectGarbage(found.pid);
}
