import type { Bus } from "#protocol/bus/bus.ts";
import { asMargayError } from "#protocol/errors.ts";
import type { ExpertMap } from "#protocol/expert-map.ts";
import { GroupOrder, GroupReply, unpackLoads } from "#protocol/group-orders.ts";
import type { WorkerId } from "#protocol/ids.ts";
import { subjects } from "#protocol/subjects.ts";
import type { Clock, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import type { Rank } from "../fleet/fleet.ts";
import type { FleetWatch } from "../fleet/fleet-watch.ts";
import { imbalanceOf, type Owners, planRebalance } from "./expert-placement.ts";
import { groupedRanks } from "./group-former.ts";
import { candidatesOf, isWhole } from "./group-plan.ts";

export interface BalanceRules {
  /** Experts a rank may hold beyond its even share. */
  readonly sparePerRank: number;
  /** How often loads are looked at; 0: never. */
  readonly balanceMs: number;
}

export interface GroupBalancerParts {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly fleet: FleetWatch;
  readonly rules: BalanceRules;
}

/** What was counted of one group. */
interface GroupView {
  readonly epoch: number;
  /** Choices per expert of all its ranks, at the last look that had enough to go by. */
  readonly counted: readonly number[];
}

const ANSWER_MS = 2_000;
/** Weights come from a disk that others read as well. */
const PREPARE_MS = 120_000;
/** Choices below which a load says nothing. */
const FEWEST_CHOICES = 1_000;

/**
 * Evens out the load of experts between the ranks of each whole group, in the background.
 *
 *   loads asked -> planned -> prepared by all -> switched by all (one step boundary) -> loads asked ...
 *
 * E1 nobody is told to switch before every rank has prepared; one that fails leaves the map as it is
 * E2 a group that ends meanwhile refuses what is still ordered for it, and its successor begins with a map of its own
 * E3 loads are those since the last look that had enough to go by, so that what was hot once does not count for ever
 * E4 the map in use is what the ranks say: whoever begins to lead goes on from it
 */
export class GroupBalancer {
  readonly #parts: GroupBalancerParts;
  readonly #views = new Map<WorkerId, GroupView>();
  readonly #busy = new Set<WorkerId>();
  #timer: Timer | null = null;

  constructor(parts: GroupBalancerParts) {
    this.#parts = parts;
  }

  start(): void {
    const { clock, rules } = this.#parts;
    if (rules.balanceMs > 0) this.#timer = clock.every(rules.balanceMs, () => this.look());
  }

  stop(): void {
    this.#timer?.cancel();
  }

  look(): void {
    const workers = groupedRanks(this.#parts.fleet.snapshot.ranks.values());
    for (const workerId of this.#views.keys()) if (!workers.has(workerId)) this.#views.delete(workerId);
    for (const [workerId, ranks] of workers) {
      const members = candidatesOf(ranks);
      if (this.#busy.has(workerId) || members.length < 2 || !isWhole(members)) continue;
      this.#busy.add(workerId);
      void this.#balance(workerId, members)
        .catch((thrown) => {
          const { code, message } = asMargayError(thrown);
          this.#parts.logger.warn({ worker: workerId, code, detail: message }, "experts were not moved");
        })
        .finally(() => this.#busy.delete(workerId));
    }
  }

  async #balance(workerId: WorkerId, members: readonly Rank[]): Promise<void> {
    const { logger, metrics, rules } = this.#parts;
    const { epoch } = members[0]!.membership!;
    const told = await Promise.all(members.map((rank) => this.#loadsOf(rank, epoch)));
    const map = told.reduce((a, b) => (a.map.version >= b.map.version ? a : b)).map;
    const counted = map.owners.map((_, expert) => told.reduce((sum, { loads }) => sum + (loads[expert] ?? 0), 0));
    const known = this.#views.get(workerId);
    const base = known?.epoch === epoch ? known.counted : counted.map(() => 0);
    const loads = counted.map((count, expert) => Math.max(0, count - (base[expert] ?? 0)));
    const tells = loads.reduce((sum, load) => sum + load, 0) >= FEWEST_CHOICES;
    this.#views.set(workerId, { epoch, counted: tells ? counted : base });
    if (!tells) return;

    const hosts = members.map(({ exchange }) => exchange?.hostKey ?? "");
    const before = imbalanceOf(map.owners, loads, members.length);
    metrics.gauge("margay_expert_imbalance", { worker: workerId, map: "before" }, before);
    metrics.gauge("margay_expert_imbalance", { worker: workerId, map: "after" }, before);
    const plan = planRebalance({ loads, hosts, sparePerRank: rules.sparePerRank, current: map.owners });
    if (plan === null) return;
    const next = { version: map.version + 1, owners: plan.owners.map((owners) => [...owners]) };
    await this.#order(members, { kind: "prepare-experts", groupEpoch: epoch, map: next }, PREPARE_MS);
    await this.#order(members, { kind: "switch-experts", groupEpoch: epoch, version: next.version }, ANSWER_MS);
    const moves = movesBetween(map.owners, plan.owners);
    metrics.gauge("margay_expert_imbalance", { worker: workerId, map: "after" }, plan.after);
    metrics.count("margay_expert_moves_total", { role: members[0]!.role }, moves);
    logger.info({ worker: workerId, before: plan.before, after: plan.after, moves }, "experts were moved");
  }

  async #loadsOf(
    rank: Rank,
    groupEpoch: number,
  ): Promise<{ readonly loads: readonly number[]; readonly map: ExpertMap }> {
    const query = { kind: "expert-loads-query", groupEpoch } as const;
    const reply = await this.#ask(rank, query, ANSWER_MS);
    if (reply.kind !== "expert-loads") throw new Error(`${rank.rankId} told no loads`);
    return { loads: unpackLoads(reply.loads), map: reply.map };
  }

  async #order(ranks: readonly Rank[], order: GroupOrder, timeoutMs: number): Promise<void> {
    await Promise.all(ranks.map((rank) => this.#ask(rank, order, timeoutMs)));
  }

  /** Throws what the rank refuses with. */
  async #ask(rank: Rank, order: GroupOrder, timeoutMs: number): Promise<GroupReply> {
    const reply = await this.#parts.bus.request(subjects.group(rank.rankId), GroupOrder, order, GroupReply, timeoutMs);
    if (reply.kind === "refused") throw asMargayError(new Error(`${rank.rankId}: ${reply.detail}`), reply.code);
    return reply;
  }
}

/** How many experts some rank takes over. */
function movesBetween(from: Owners, to: Owners): number {
  return to.reduce((sum, owners, expert) => sum + owners.filter((rank) => !from[expert]!.includes(rank)).length, 0);
}
