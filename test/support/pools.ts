import { expect } from "vitest";
import { type System, waitFor } from "./system.ts";

/** Blocks of every rank by state, as each rank counts them itself. */
export async function poolStates(system: System): Promise<ReadonlyMap<string, Readonly<Record<string, number>>>> {
  const pools = new Map<string, Record<string, number>>();
  for (const rank of await system.ranks()) {
    if (rank.state === "lost") continue;
    const counts: Record<string, number> = {};
    for (const [labels, value] of await system.metric(rank.healthUrl, "margay_kv_pages")) {
      counts[/state="([a-z]+)"/.exec(labels)?.[1] ?? labels] = value;
    }
    pools.set(rank.workerId, counts);
  }
  return pools;
}

/** Nothing is held: every block of every rank is free or cached within `timeoutMs` (promised: 5 s). */
export async function expectNothingHeld(system: System, timeoutMs = 15_000): Promise<void> {
  let last = new Map() as Awaited<ReturnType<typeof poolStates>>;
  await waitFor(
    "all blocks to be free or cached",
    async () => {
      last = await poolStates(system);
      const held = [...last.values()].some((counts) =>
        Object.entries(counts).some(([state, count]) => state !== "free" && state !== "cached" && count > 0),
      );
      return held ? null : true;
    },
    timeoutMs,
    () => JSON.stringify([...last]),
  );
  expect(last.size).toBeGreaterThan(0);
}
