import { asMargayError } from "#protocol/errors.ts";
import { type ExpertMap, judgeExpertMap } from "#protocol/expert-map.ts";
import {
  type GroupOrder,
  type GroupReply,
  type JoinGroup,
  type PrepareExperts,
  packLoads,
  type SwitchExperts,
} from "#protocol/group-orders.ts";
import type { RankId } from "#protocol/ids.ts";
import type { ExchangeEndpoint, LostGroup, Membership } from "#protocol/membership.ts";
import type { Refused } from "#protocol/worker.ts";
import { atMost } from "./at-most.ts";
import type { Clock } from "./clock.ts";
import type { Logger } from "./logger.ts";

/** The part of an engine that is a rank of a group; see native/binding/group-engine.ts. */
export interface SeatEngine {
  joinGroup(spec: {
    readonly epoch: number;
    readonly self: number;
    readonly members: readonly (ExchangeEndpoint & { readonly rankId: RankId })[];
    readonly secret: string;
    readonly map: ExpertMap;
  }): Promise<void>;
  leaveGroup(atOnce: boolean): Promise<void>;
  prepareExperts(map: ExpertMap): Promise<void>;
  switchExperts(version: number): void;
  exchangeStats(): { readonly expertLoads: Float64Array };
}

/** What an engine tells when its group has ended under it. */
export interface GroupLostEvent {
  readonly epoch: number;
  /** Place among the group's members; null: nobody in particular. */
  readonly guilty: number | null;
  readonly cause: string;
}

export interface GroupSeatParts {
  readonly engine: SeatEngine;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly rankId: RankId;
  readonly rankEpoch: number;
  /** Real experts of the model. */
  readonly experts: number;
  /** The rank is in another group, or in none. */
  readonly onChange: (membership: Membership | null, lost: LostGroup | null) => void;
  /** The group ended under its requests. */
  readonly onLost: (detail: string) => void;
}

/** After a group was asked to end in order, before it is left at once. */
const LEAVE_MS = 3_000;

/**
 * Owns a rank's membership in its group.
 *
 *   alone -> joining -> in a group -> leaving -> alone          in a group -> lost -> alone
 *
 * M1 of orders to join, the one with the highest group epoch counts; another is refused as stale
 * M2 a group is left before the next one is joined; leaving in order keeps the requests, a lost group ends them
 * M3 the membership told outside is one that all members have joined natively
 * M4 prepare and switch are obeyed only for the group that they name, and switch only for a map that was prepared
 */
export class GroupSeat {
  readonly #parts: GroupSeatParts;
  /** The highest epoch that was ordered. */
  #ordered = 0;
  #membership: Membership | null = null;
  #members: readonly number[] = [];
  #lost: LostGroup | null = null;
  /** The one in use, and the one that is ready to be; null: none. */
  #map: ExpertMap | null = null;
  #preparedMap: ExpertMap | null = null;
  /** The order that is being obeyed: one at a time. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(parts: GroupSeatParts) {
    this.#parts = parts;
  }

  get isJoined(): boolean {
    return this.#membership !== null;
  }

  async obey(order: GroupOrder): Promise<GroupReply> {
    if (order.kind === "join-group") return this.#join(order);
    if (order.groupEpoch !== this.#membership?.epoch) {
      return refuse("stale_epoch", `${this.#parts.rankId} is in group ${this.#membership?.epoch ?? "none"}`);
    }
    if (order.kind === "prepare-experts") return this.#prepare(order);
    if (order.kind === "switch-experts") return this.#switch(order);
    if (this.#map === null) return refuse("internal", "no expert map is in use");
    const loads = packLoads(this.#parts.engine.exchangeStats().expertLoads);
    return { kind: "expert-loads", loads, map: this.#map };
  }

  /** The engine's event. */
  onGroupLost({ epoch, guilty, cause }: GroupLostEvent): void {
    const { logger, rankId } = this.#parts;
    if (this.#membership === null || this.#membership.epoch !== epoch) return;
    const rank = guilty === null ? null : (this.#members[guilty] ?? null);
    logger.warn({ rank: rankId, groupEpoch: epoch, guilty: rank, cause }, "the group is lost");
    this.#lost = { epoch, guilty: rank };
    this.#setMembership(null);
    this.#parts.onLost(rank === null ? "the group of ranks was lost" : `rank ${rank} of the group was lost`);
  }

  /** Takes part in the others' steps until they leave as well, at most `ms`. */
  async leave(ms: number): Promise<void> {
    const { clock, engine } = this.#parts;
    this.#ordered = Number.MAX_SAFE_INTEGER;
    if (this.#membership === null) return;
    const left = engine.leaveGroup(false).catch(() => {});
    await atMost(clock, ms, left);
  }

  async #join(order: JoinGroup): Promise<GroupReply> {
    const { rankId, rankEpoch, experts, engine } = this.#parts;
    const { groupEpoch, members, secret, map } = order;
    if (order.rankEpoch !== rankEpoch) return refuse("stale_epoch", `${rankId} is in epoch ${rankEpoch}`);
    if (groupEpoch <= this.#ordered) return refuse("stale_epoch", `${rankId} was ordered into group ${this.#ordered}`);
    const self = members.findIndex((member) => member.rankId === rankId);
    if (self < 0) return refuse("invalid_request", `${rankId} is no member of group ${groupEpoch}`);
    const wrong = judgeExpertMap(map, experts, members.length);
    if (wrong !== null) return refuse("invalid_request", wrong);
    this.#ordered = groupEpoch;
    const before = this.#turn;
    const turn = (async () => {
      await this.#leaveLast(before);
      if (this.#ordered !== groupEpoch) throw new Error(`group ${this.#ordered} was ordered meanwhile`);
      const peers = members.map(({ rankId, endpoint }) => ({ rankId, ...endpoint }));
      await engine.joinGroup({ epoch: groupEpoch, self, members: peers, secret, map });
    })();
    this.#turn = turn.catch(() => {});
    try {
      await turn;
    } catch (thrown) {
      return refuse("worker_lost", asMargayError(thrown).message);
    }
    this.#lost = null;
    this.#members = members.map(({ rank }) => rank);
    this.#map = map;
    this.#setMembership({ epoch: groupEpoch, members: [...this.#members], mapVersion: map.version });
    return { kind: "done" };
  }

  /** Whatever group this rank is in, or still joins, ends. */
  async #leaveLast(before: Promise<unknown>): Promise<void> {
    const { clock, engine } = this.#parts;
    if (this.#membership === null) {
      await engine.leaveGroup(true);
      await before;
      return;
    }
    this.#setMembership(null);
    const left = engine.leaveGroup(false);
    left.catch(() => {});
    await atMost(clock, LEAVE_MS, left);
    await engine.leaveGroup(true);
  }

  async #prepare({ map }: PrepareExperts): Promise<GroupReply> {
    const wrong = judgeExpertMap(map, this.#parts.experts, this.#members.length);
    if (wrong !== null) return refuse("invalid_request", wrong);
    try {
      await this.#parts.engine.prepareExperts(map);
    } catch (thrown) {
      return refuse("internal", asMargayError(thrown).message);
    }
    this.#preparedMap = map;
    return { kind: "done" };
  }

  #switch({ version }: SwitchExperts): GroupReply {
    if (this.#membership === null || version !== this.#preparedMap?.version) {
      return refuse("invalid_request", `expert map ${version} was not prepared`);
    }
    this.#parts.engine.switchExperts(version);
    this.#map = this.#preparedMap;
    this.#setMembership({ ...this.#membership, mapVersion: version });
    return { kind: "done" };
  }

  #setMembership(membership: Membership | null): void {
    this.#membership = membership;
    if (membership === null) this.#map = this.#preparedMap = null;
    this.#parts.onChange(membership, this.#lost);
  }
}

function refuse(code: Refused["code"], detail: string): Refused {
  return { kind: "refused", code, detail: detail.slice(0, 500), retryAfterMs: null };
}
