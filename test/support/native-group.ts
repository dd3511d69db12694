import type { EngineOptions } from "../../native/binding/native.ts";
import { asGroupEngine, type GroupEngine, type GroupOptions, type GroupSpec } from "../../native/binding/native.ts";
import { contiguousMap } from "./expert-maps.ts";
import { NativeRank } from "./native-rank.ts";

/** Ranks of one worker over nano, all in this process. */
export class NativeGroup {
  readonly ranks: readonly NativeRank[];
  epoch = 0;
  readonly #exchange: Pick<GroupOptions, "exchangeTransport" | "exchangePayload">;

  private constructor(
    ranks: readonly NativeRank[],
    exchangeTransport: GroupOptions["exchangeTransport"],
    exchangePayload: GroupOptions["exchangePayload"],
  ) {
    this.ranks = ranks;
    this.#exchange = { exchangeTransport, exchangePayload };
  }

  /** Opens the ranks and makes them a group. */
  static async open(
    size: number,
    changes: Partial<EngineOptions> = {},
    transport: GroupOptions["exchangeTransport"] = "auto",
    payload: GroupOptions["exchangePayload"] = "bf16",
  ): Promise<NativeGroup> {
    const ranks: NativeRank[] = [];
    const group = new NativeGroup(ranks, transport, payload);
    for (let i = 0; i < size; i++) {
      ranks.push(await NativeRank.open("decode", { ...changes, group: group.optionsFor(size) }));
    }
    await group.form(ranks);
    return group;
  }

  optionsFor(ranks: number): GroupOptions {
    return {
      ranks,
      exchangeHost: "127.0.0.1",
      exchangePort: 0,
      ...this.#exchange,
      exchangeDeadlineMs: 20_000,
    };
  }

  seatOf(rank: NativeRank): GroupEngine {
    return asGroupEngine(rank.engine);
  }

  statsOf(rank: NativeRank): ReturnType<GroupEngine["exchangeStats"]> {
    return this.seatOf(rank).exchangeStats();
  }

  /** A group of these, of the present epoch, for its member number `self`. */
  specOf(members: readonly NativeRank[], self: number): GroupSpec {
    const peers = members.map((rank) => ({
      rankId: `w0-r${this.ranks.indexOf(rank)}`,
      host: "127.0.0.1",
      port: this.seatOf(rank).exchangePort,
      hostKey: rank.engine.info.hostKey,
    }));
    const map = contiguousMap(this.seatOf(members[0]!).experts, members.length);
    return { epoch: this.epoch, self, members: peers, secret: `group ${this.epoch}`, map };
  }

  /** The next group, of ranks that are in none. */
  async form(members: readonly NativeRank[]): Promise<void> {
    this.epoch++;
    await Promise.all(members.map((rank, self) => this.seatOf(rank).joinGroup(this.specOf(members, self))));
  }

  async end(): Promise<void> {
    for (const rank of this.ranks) await this.seatOf(rank).leaveGroup(true);
    for (const rank of this.ranks) await rank.end();
  }
}
