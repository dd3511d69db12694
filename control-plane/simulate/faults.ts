import type { Random } from "#service/clock.ts";
import type { SimFate } from "../../native/binding/sim-fabric.ts";
import type { Fault, Scenario } from "./scenario.ts";
import { between, chance, namedRandom, oneOf } from "./seeded-random.ts";
import type { SimLink } from "./sim-network.ts";
import type { SimWorker } from "./sim-worker.ts";
import type { SimWorld } from "./sim-world.ts";

/** Brings a scenario's faults upon a world, each at its time. */
export function scheduleFaults(world: SimWorld, { faults, seed }: Scenario, note: (what: () => string) => void): void {
  const random = namedRandom(seed, "pages");
  world.fabric.fault = (_page, port) => pathTo(world, port);
  for (const fault of faults) {
    world.time.at(fault.atMs, () => {
      note(() => `fault: ${JSON.stringify(fault)}`);
      bring(world, fault, random, note);
    });
  }
}

function bring(world: SimWorld, fault: Fault, random: Random, note: (what: () => string) => void): void {
  const { time, controlPlanes } = world;
  const worker = (): SimWorker | null => pickOf(world.target.living, "pick" in fault ? fault.pick : 0);
  const told = <T extends SimWorker | null>(one: T): T => {
    note(() => (one === null ? "  there is no worker" : `  to ${one.link.name}`));
    return one;
  };
  switch (fault.kind) {
    case "crash":
      told(worker())?.crash(fault.what);
      break;
    case "engine": {
      const one = told(worker());
      if (one === null || one.engine === null) return;
      one.engineFailed = true;
      one.engine.fail("a simulated fault");
      break;
    }
    case "freeze": {
      const one = told(worker());
      one?.js.pause(fault.ms);
      if (fault.all) one?.native.pause(fault.ms);
      return;
    }
    case "zombie": {
      const one = told(worker());
      if (one === null) return;
      one.js.pause(fault.ms);
      one.native.pause(fault.ms);
      time.after(fault.ms / 2, () => world.target.disown(one));
      time.after(fault.ms + 20_000, () => one.crash("process"));
      return;
    }
    case "drain":
      told(worker())?.stop(fault.graceMs);
      break;
    case "clock": {
      const one = told(worker());
      if (one !== null) one.js.aheadMs = fault.aheadMs;
      return;
    }
    case "boast": {
      const engine = told(worker())?.engine ?? null;
      if (engine === null) return;
      engine.boasts = true;
      time.after(fault.ms, () => {
        engine.boasts = false;
      });
      return;
    }
    case "cut": {
      const link = fault.pick < 0 ? (pickOf(controlPlanes, -fault.pick)?.link ?? null) : (told(worker())?.link ?? null);
      if (link !== null) cut(world, link, fault);
      return;
    }
    case "bus":
      for (const link of [...controlPlanes, ...world.target.living].map((one) => one.link)) {
        cut(world, link, { ms: fault.ms + random.uniform() * 2_000, noticedMs: 0, ghostMs: 0 });
      }
      return;
    case "pages": {
      // Several of them may be under way, and end in any order.
      const before = world.fabric.fault;
      let over = false;
      world.fabric.fault = (page, port) => (!over && chance(random, fault.share) ? fateOf(random) : before(page, port));
      time.after(fault.ms, () => {
        over = true;
      });
      return;
    }
    case "gateway-freeze":
      pickOf(controlPlanes, fault.pick)?.thread.pause(fault.ms);
      break;
    case "gateway-crash":
      world.crashControlPlane(controlPlanes.length - 1);
  }
}

function cut(
  { time }: SimWorld,
  link: SimLink,
  { ms, noticedMs, ghostMs }: { readonly ms: number; readonly noticedMs: number; readonly ghostMs: number },
): void {
  if (!link.open) return;
  link.break(ghostMs > 0);
  time.after(noticedMs, () => link.lose());
  time.after(ghostMs, () => link.noticed());
  time.after(Math.max(ms, noticedMs), () => link.restore());
}

function fateOf(random: Random): SimFate {
  const heldMs = between(random, 1, chance(random, 0.5) ? 50 : 3_000);
  return oneOf<SimFate>(random, ["lose", heldMs, heldMs, heldMs, "twice", "checksum", "truncated"]);
}

/** A frozen receiver takes pages when it wakes; a dead host never says that it will not. */
function pathTo(world: SimWorld, port: number): SimFate {
  const receiver = world.target.processes.findLast(({ engine }) => engine?.info.kvPort === port);
  if (receiver?.ended) return "lose";
  return receiver?.native.paused ? 10 : "deliver";
}

function pickOf<T>(list: readonly T[], pick: number): T | null {
  return list.length === 0 ? null : list[pick % list.length]!;
}
