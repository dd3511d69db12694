import type { ExpertMap } from "#protocol/expert-map.ts";
import type { ExchangeStats, GroupEngine, GroupSpec } from "./group-engine.ts";
import type { EngineEvent } from "./native.ts";
import type { SimModel } from "./sim-model.ts";
import { simFailure } from "./sim-sequence.ts";

/** What a simulated rank needs of its engine. */
export interface SimGroupHost {
  /** Steps begin (false), or none does (true). */
  hold(held: boolean): void;
  /** The running step, if there is one, does not count. */
  failStep(): void;
  emit(event: EngineEvent): void;
}

interface SimGroup {
  readonly size: number;
  readonly joined: Map<number, SimGroupRank>;
  readonly leaving: Set<number>;
}

/**
 * The groups of the simulated engines of one process. Ranks of one group do not step in lock-step: that they form, end in
 * order, and are lost to each other is what is simulated.
 *
 *   (none) -> some joined -> all joined -> some want to leave -> over       all joined -> one falls silent -> lost, over
 */
export class SimGroups {
  readonly #groups = new Map<number, SimGroup>();

  join(epoch: number, size: number, place: number, rank: SimGroupRank): void {
    const group = this.#groups.get(epoch) ?? { size, joined: new Map(), leaving: new Set() };
    this.#groups.set(epoch, group);
    group.joined.set(place, rank);
    if (group.joined.size === group.size) for (const member of group.joined.values()) member.begin();
  }

  /** In order: over when all want to. */
  leave(epoch: number, place: number): void {
    const group = this.#groups.get(epoch);
    group?.leaving.add(place);
    if (group === undefined || group.leaving.size < group.size) return;
    this.#groups.delete(epoch);
    for (const member of group.joined.values()) member.end();
  }

  /** `place` does nothing any more: the others lose the group. */
  lose(epoch: number, place: number, cause: string): void {
    const group = this.#groups.get(epoch);
    if (group === undefined) return;
    this.#groups.delete(epoch);
    for (const [other, member] of group.joined) if (other !== place) member.lost(place, cause);
  }
}

/** One rank's part. */
export class SimGroupRank implements GroupEngine {
  readonly experts: number;
  readonly exchangePort: number;
  /** Choices per expert, for a test to set. */
  readonly expertLoads: Float64Array;
  /** Maps that were prepared, and the one in use. */
  readonly prepared = new Map<number, ExpertMap>();
  map: ExpertMap | null = null;
  /** Does nothing and hears nothing, as a stopped process. */
  #stopped = false;
  #spec: GroupSpec | null = null;
  #joining: PromiseWithResolvers<void> | null = null;
  #leaving: PromiseWithResolvers<void> | null = null;
  readonly #groups: SimGroups;
  readonly #model: SimModel;
  readonly #deadlineMs: number;
  readonly #host: SimGroupHost;

  constructor(model: SimModel, deadlineMs: number, host: SimGroupHost) {
    this.#model = model;
    this.#groups = model.fabric.groups;
    this.#deadlineMs = deadlineMs;
    this.#host = host;
    this.experts = model.experts;
    this.exchangePort = model.fabric.anyPort();
    this.expertLoads = new Float64Array(model.experts);
    host.hold(true);
  }

  get epoch(): number | null {
    return this.#spec?.epoch ?? null;
  }

  async joinGroup(spec: GroupSpec): Promise<void> {
    if (this.#spec !== null) throw simFailure("bad_state", `in group ${this.#spec.epoch}`);
    this.#spec = spec;
    this.map = spec.map;
    const joining = Promise.withResolvers<void>();
    this.#joining = joining;
    const timer = this.#model.clock.after(this.#deadlineMs, () => this.#giveUp("not all members joined"));
    if (!this.#stopped) this.#groups.join(spec.epoch, spec.members.length, spec.self, this);
    await joining.promise.finally(() => timer.cancel());
  }

  async leaveGroup(atOnce: boolean): Promise<void> {
    if (this.#spec === null) return;
    this.#host.hold(true);
    if (this.#joining !== null) {
      this.#giveUp("left while joining");
      return;
    }
    const { epoch, self } = this.#spec;
    if (atOnce) {
      this.end();
      this.#groups.lose(epoch, self, "left");
      return;
    }
    this.#leaving = Promise.withResolvers<void>();
    const { promise } = this.#leaving;
    if (!this.#stopped) this.#groups.leave(epoch, self);
    await promise;
  }

  async prepareExperts(map: ExpertMap): Promise<void> {
    this.prepared.set(map.version, map);
  }

  switchExperts(version: number): void {
    const map = this.prepared.get(version);
    if (map === undefined) throw simFailure("bad_argument", `map ${version} was not prepared`);
    this.map = map;
  }

  exchangeStats(): ExchangeStats {
    const realChoices = this.expertLoads.reduce((sum, load) => sum + load, 0);
    return {
      expertLoads: Float64Array.from(this.expertLoads),
      routedRows: realChoices / 2,
      realChoices,
      zeroChoices: realChoices / 2,
      bytesDispatched: 0,
      bytesCombined: 0,
      exposedMs: 0,
      skewMs: 0,
      staleMessages: 0,
    };
  }

  /** From now on this rank neither steps nor answers its peers, who notice by their deadline. */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#host.hold(true);
    if (this.#spec === null) return;
    const { epoch, self } = this.#spec;
    this.#model.clock.after(this.#deadlineMs, () => this.#groups.lose(epoch, self, "deadline"));
  }

  /** It does again, and finds that its group went on without it. */
  resume(): void {
    this.#stopped = false;
    if (this.#spec !== null) this.lost(this.#spec.self, "deadline");
  }

  /** All members have joined. */
  begin(): void {
    this.#joining?.resolve();
    this.#joining = null;
    this.#host.hold(false);
  }

  /** The group is over, as this rank wished. */
  end(): void {
    this.#host.hold(true);
    this.#spec = null;
    this.#leaving?.resolve();
    this.#leaving = null;
  }

  lost(guilty: number, cause: string): void {
    if (this.#stopped || this.#spec === null) return;
    const { epoch } = this.#spec;
    this.end();
    this.#host.failStep();
    this.#host.emit({ kind: "group-lost", epoch, guilty, cause });
  }

  #giveUp(cause: string): void {
    const joining = this.#joining;
    this.#joining = null;
    this.#spec = null;
    joining?.reject(simFailure("group_lost", cause));
  }
}
