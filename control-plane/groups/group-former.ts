import type { Bus } from "#protocol/bus/bus.ts";
import { asMargayError } from "#protocol/errors.ts";
import { type GroupMember, GroupOrder, GroupReply, type JoinGroup } from "#protocol/group-orders.ts";
import type { WorkerId } from "#protocol/ids.ts";
import { subjects } from "#protocol/subjects.ts";
import { type BackoffRule, backoffMs } from "#service/backoff.ts";
import type { Clock, Random, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import type { Rank } from "../fleet/fleet.ts";
import type { FleetWatch } from "../fleet/fleet-watch.ts";
import { contiguousOwners } from "./expert-placement.ts";
import { candidateKey, type GroupHistory, type GroupRules, planGroup, withLook } from "./group-plan.ts";

const TICK_MS = 50;
/** All members have joined within this time, or the group is tried again. */
const JOIN_MS = 15_000;
/** After a group of these ranks was formed: time for their heartbeats to say so. */
const HOLD_MS = 2_000;
const SECRET_BYTES = 16;
const RETRY: BackoffRule = { firstMs: 200, mostMs: 5_000 };

export interface GroupFormerParts {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly fleet: FleetWatch;
  readonly rules: GroupRules;
}

/**
 * Forms the ranks of each worker into a group, and anew whenever its members change.
 *
 *   ranks forming -> asked to join (group epoch) -> all joined: ready -> a member lost or come -> ranks forming -> ...
 *
 * G1 a group epoch is a revision of the epoch bucket: of two orders a rank obeys the one with the higher number, from
 *    whichever control plane it comes, and refuses the other
 * G2 nothing is kept that heartbeats do not tell: a restarted control plane leaves a whole group alone
 * G3 ranks of one group joined natively, all or none: whoever says `ready` steps with everybody in its membership
 * G4 of ranks that change while a group of them forms, the next group is formed at once, with a higher epoch
 */
export class GroupFormer {
  readonly #parts: GroupFormerParts;
  readonly #histories = new Map<WorkerId, GroupHistory>();
  readonly #failures = new Map<WorkerId, number>();
  #open: { cancel(): void }[] = [];

  constructor(parts: GroupFormerParts) {
    this.#parts = parts;
  }

  start(): void {
    const { clock, fleet } = this.#parts;
    const timer: Timer = clock.every(TICK_MS, () => this.look());
    this.#open = [timer, { cancel: fleet.onChange(() => this.look()) }];
  }

  stop(): void {
    for (const open of this.#open) open.cancel();
    this.#open = [];
  }

  look(): void {
    const { clock, fleet, rules } = this.#parts;
    const nowMs = clock.monotonic();
    const workers = groupedRanks(fleet.snapshot.ranks.values());
    for (const workerId of this.#histories.keys()) if (!workers.has(workerId)) this.#forget(workerId);
    for (const [workerId, ranks] of workers) {
      const history = withLook(this.#histories.get(workerId), ranks, nowMs);
      this.#histories.set(workerId, history);
      const move = planGroup(ranks, history, rules, nowMs);
      if (move.kind === "none") continue;
      // One order per set of ranks at a time (G4).
      this.#histories.set(workerId, { ...history, notBeforeMs: nowMs + JOIN_MS + HOLD_MS });
      void this.#form(workerId, move.ranks);
    }
  }

  #forget(workerId: WorkerId): void {
    this.#histories.delete(workerId);
    this.#failures.delete(workerId);
  }

  /** Never rejects. */
  async #form(workerId: WorkerId, ranks: readonly Rank[]): Promise<void> {
    const { bus, clock, logger, metrics, random } = this.#parts;
    const beganMs = clock.monotonic();
    const role = ranks[0]!.role;
    let failure: string | null = null;
    let groupEpoch = 0;
    try {
      const members = ranks.map(memberOf);
      groupEpoch = await bus.nextEpoch(workerId);
      const map = {
        version: 0,
        owners: contiguousOwners(ranks[0]!.experts, ranks.length).map((owners) => [...owners]),
      };
      const secret = random.hex(SECRET_BYTES);
      const join = { kind: "join-group", groupEpoch, members, secret, map } as const;
      const replies = await Promise.all(ranks.map((rank) => this.#ask(rank, { ...join, rankEpoch: rank.epoch })));
      failure = replies.find((reply) => reply !== null) ?? null;
    } catch (thrown) {
      failure = asMargayError(thrown).message;
    }
    const tookMs = Math.round(clock.monotonic() - beganMs);
    const fields = { worker: workerId, groupEpoch, ranks: ranks.map(({ rank }) => rank), of: ranks[0]!.ranks, tookMs };
    const failed = failure === null ? 0 : (this.#failures.get(workerId) ?? 0) + 1;
    this.#failures.set(workerId, failed);
    metrics.count("margay_groups_formed_total", { role, outcome: failure === null ? "whole" : "failed" });
    if (failure === null) logger.info(fields, "a group of ranks was formed");
    else logger.warn({ ...fields, failure }, "a group of ranks could not be formed");
    const pauseMs = failure === null ? HOLD_MS : backoffMs(RETRY, failed, random);
    const history = this.#histories.get(workerId);
    if (history?.key === candidateKey(ranks)) {
      this.#histories.set(workerId, { ...history, notBeforeMs: clock.monotonic() + pauseMs });
    }
  }

  /** null: it has joined. */
  async #ask(rank: Rank, order: JoinGroup): Promise<string | null> {
    try {
      const reply = await this.#parts.bus.request(subjects.group(rank.rankId), GroupOrder, order, GroupReply, JOIN_MS);
      return reply.kind === "refused" ? `${rank.rankId}: ${reply.detail}` : null;
    } catch (thrown) {
      return `${rank.rankId}: ${asMargayError(thrown).message}`;
    }
  }
}

function memberOf(rank: Rank): GroupMember {
  if (rank.exchange === null) throw new Error(`${rank.rankId} takes no rows for its experts`);
  return { rank: rank.rank, rankId: rank.rankId, endpoint: rank.exchange };
}

/** Ranks of the workers that have several. */
export function groupedRanks(ranks: Iterable<Rank>): ReadonlyMap<WorkerId, readonly Rank[]> {
  const workers = new Map<WorkerId, Rank[]>();
  for (const rank of ranks) {
    if (rank.ranks > 1) workers.set(rank.workerId, [...(workers.get(rank.workerId) ?? []), rank]);
  }
  return workers;
}
