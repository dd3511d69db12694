import { type ChaosOptions, type ChaosResult, runScenario } from "./chaos.ts";
import type { Scenario } from "./scenario.ts";

/** Runs that a search may take. */
const MOST_RUNS = 40;

/**
 * A smaller scenario in which the same invariant breaks: faults and requests are left out, half of them at a time, then
 * fewer, as long as it still does. Returns it with its result, what happened kept.
 */
export async function shrink(
  scenario: Scenario,
  invariant: string,
  options: ChaosOptions,
): Promise<{ readonly scenario: Scenario; readonly result: ChaosResult }> {
  let runs = 0;
  const breaks = async (candidate: Scenario): Promise<boolean> => {
    runs++;
    const { broken } = await runScenario(candidate, { ...options, record: false });
    return broken?.invariant === invariant;
  };
  let smallest = scenario;
  for (const part of ["faults", "requests"] as const) {
    for (let size = Math.ceil(smallest[part].length / 2); size >= 1 && runs < MOST_RUNS; ) {
      const shorter = await withoutSome(smallest, part, size, breaks, () => runs < MOST_RUNS);
      if (shorter === null) size = Math.floor(size / 2);
      else smallest = shorter;
    }
  }
  return { scenario: smallest, result: await runScenario(smallest, { ...options, record: true }) };
}

/** Without `size` neighbours of a list, the first that can be spared; null: none can. */
async function withoutSome(
  scenario: Scenario,
  part: "faults" | "requests",
  size: number,
  breaks: (candidate: Scenario) => Promise<boolean>,
  goesOn: () => boolean,
): Promise<Scenario | null> {
  const list: readonly unknown[] = scenario[part];
  for (let at = 0; at < list.length && goesOn(); at += size) {
    const candidate = { ...scenario, [part]: [...list.slice(0, at), ...list.slice(at + size)] };
    if (await breaks(candidate)) return candidate;
  }
  return null;
}
