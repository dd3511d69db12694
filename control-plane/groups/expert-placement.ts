/**
 * Which rank holds which expert: pure. Loads are choices per expert, in any unit.
 *
 * P1 every expert has a holder, and no holder twice
 * P2 equal inputs give equal maps
 * P3 an expert's rows are taken to be shared evenly by its holders
 */
export type Owners = readonly (readonly number[])[];

/** Experts in order, as evenly as their number allows: the first ranks have one more where it does not divide. */
export function contiguousOwners(experts: number, ranks: number): Owners {
  return Array.from({ length: experts }, (_, expert) => [Math.floor(((expert + 1) * ranks - 1) / experts)]);
}

/** Load of the busiest rank over the mean of all; 1 where nothing is to do. */
export function imbalanceOf(owners: Owners, loads: readonly number[], ranks: number): number {
  const perRank = rankLoads(owners, loads, ranks);
  const total = perRank.reduce((sum, load) => sum + load, 0);
  return total === 0 ? 1 : (Math.max(...perRank) * ranks) / total;
}

export interface BalanceQuery {
  readonly loads: readonly number[];
  /** Host of each rank, by any name: a host's ranks share its memory bandwidth and its links. */
  readonly hosts: readonly string[];
  /** Experts a rank may hold beyond its even share. */
  readonly sparePerRank: number;
  /** The map in use: among equally loaded ranks one that holds the expert already is preferred, so that less moves. */
  readonly current: Owners;
}

/**
 * A map for these loads. Greedy in two passes: replicas go one by one to the expert whose replicas bear most each; then
 * all replicas, the heaviest first, go to the least loaded host that has a rank with room, and there to the least loaded
 * such rank.
 */
export function balancedOwners(query: BalanceQuery): Owners {
  const { loads, hosts, sparePerRank, current } = query;
  const ranks = hosts.length;
  const experts = loads.length;
  const room = Math.ceil(experts / ranks) + sparePerRank;
  const copies = replicate(loads, ranks, Math.min(experts + ranks * sparePerRank, room * ranks));
  const heaviest = copies
    .flatMap((count, expert) => Array.from({ length: count }, () => ({ expert, load: loads[expert]! / count })))
    .sort((a, b) => b.load - a.load || a.expert - b.expert);

  const owners: number[][] = loads.map(() => []);
  const held = hosts.map(() => 0);
  const borne = hosts.map(() => 0);
  const hostLoad = new Map(hosts.map((host) => [host, 0]));
  const size = (host: string): number => hosts.filter((other) => other === host).length;
  for (const { expert, load } of heaviest) {
    const open = hosts.flatMap((_, rank) => (held[rank]! < room && !owners[expert]!.includes(rank) ? [rank] : []));
    // A replica that fits nowhere is one too many: the expert has a holder already.
    if (open.length === 0) continue;
    const perHost = (rank: number): number => hostLoad.get(hosts[rank]!)! / size(hosts[rank]!);
    const stays = (rank: number): number => (current[expert]?.includes(rank) === true ? 0 : 1);
    const best = open.reduce((a, b) => {
      const order = perHost(a) - perHost(b) || borne[a]! - borne[b]! || stays(a) - stays(b) || held[a]! - held[b]!;
      return order <= 0 ? a : b;
    });
    owners[expert]!.push(best);
    held[best]!++;
    borne[best]! += load;
    hostLoad.set(hosts[best]!, hostLoad.get(hosts[best]!)! + load);
  }
  return owners.map((holders) => holders.sort((a, b) => a - b));
}

/** Imbalance below which nothing is moved, and the gain without which it is not worth the move. */
export const BALANCED = 1.15;
export const WORTHWHILE = 0.9;

export interface Rebalance {
  readonly owners: Owners;
  readonly before: number;
  readonly after: number;
}

/** The map to change to; null while the one in use is good enough, or hardly worse than the best. */
export function planRebalance(query: BalanceQuery): Rebalance | null {
  const ranks = query.hosts.length;
  const before = imbalanceOf(query.current, query.loads, ranks);
  if (before <= BALANCED) return null;
  const owners = balancedOwners(query);
  const after = imbalanceOf(owners, query.loads, ranks);
  return after <= before * WORTHWHILE ? { owners, before, after } : null;
}

/** Copies of each expert: `places` in all where the experts can use so many, at most one on each rank. */
function replicate(loads: readonly number[], ranks: number, places: number): readonly number[] {
  const copies = loads.map(() => 1);
  for (let left = places - loads.length; left > 0; left--) {
    let hottest = -1;
    for (const [expert, load] of loads.entries()) {
      if (copies[expert]! >= ranks || load === 0) continue;
      if (hottest < 0 || load / copies[expert]! > loads[hottest]! / copies[hottest]!) hottest = expert;
    }
    if (hottest < 0) break;
    copies[hottest]!++;
  }
  return copies;
}

function rankLoads(owners: Owners, loads: readonly number[], ranks: number): readonly number[] {
  const perRank = Array.from({ length: ranks }, () => 0);
  for (const [expert, holders] of owners.entries()) {
    for (const rank of holders) perRank[rank]! += loads[expert]! / holders.length;
  }
  return perRank;
}
