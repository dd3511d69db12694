import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import type { MargayError } from "#protocol/errors.ts";
import type { GatewayId, RequestId } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import { silentLogger } from "#service/logger.ts";
import { createMetrics } from "#service/metrics.ts";
import { FleetWatch } from "../../control-plane/fleet/fleet-watch.ts";
import type { Share } from "../../control-plane/flow/fair-queue.ts";
import { RequestBoard } from "../../control-plane/flow/request-board.ts";
import { Flow, type FlowProgress, type RequestUse, type Settled } from "../../control-plane/flow/request-flow.ts";
import { WaitingRoom } from "../../control-plane/flow/waiting-room.ts";
import { FakeClock, fakeRandom } from "./fake-clock.ts";
import { NANO } from "./fleet-of.ts";
import { generationOf, promptOf } from "./generation.ts";
import { ScriptedRank, tokenAt } from "./scripted-rank.ts";

/** A request under way, as its client sees it. */
export interface Ride {
  readonly tokens: number[];
  readonly progress: FlowProgress[];
  readonly abort: AbortController;
  /** Set once the flow has answered; exactly one of the two. */
  readonly settled: Settled | null;
  readonly error: MargayError | null;
  /** Set once it is known what the request used up. */
  readonly use: RequestUse | null;
  /** How often the flow answered. */
  readonly ends: number;
}

/** A flow over a memory bus and scripted ranks, under virtual time. */
export class FlowWorld {
  /** Why the model has no workers, as the scale target would say. */
  whyNone: { readonly sentence: string; readonly mayPass: boolean } | null = null;
  waitingElsewhere = 0;
  readonly clock = new FakeClock();
  readonly network = new MemoryNetwork(this.clock, fakeRandom(7));
  readonly bus = this.network.connect("control-plane");
  readonly metrics = createMetrics({ processMetrics: false });
  readonly gatewayId = "gw-1" as GatewayId;
  readonly fleet = new FleetWatch({
    bus: this.bus,
    clock: this.clock,
    logger: silentLogger,
    gatewayId: this.gatewayId,
  });
  readonly ranks: ScriptedRank[] = [];
  readonly waitingRoom: WaitingRoom;
  readonly board: RequestBoard;
  readonly flow: Flow;
  arrivals = 0;
  #requests = 0;

  constructor(
    options: { readonly localPrefillTokens?: number; readonly mostWaiting?: number; readonly waitMs?: number } = {},
  ) {
    const { fleet, clock, metrics, bus, gatewayId } = this;
    const waitMs = options.waitMs ?? 120_000;
    this.waitingRoom = new WaitingRoom({
      ...{ fleet, clock, metrics, waitMs },
      mostWaiting: options.mostWaiting ?? 100,
      whyNone: () => this.whyNone,
      waitingElsewhere: () => this.waitingElsewhere,
      onArrival: () => this.arrivals++,
      onEmpty: () => {},
    });
    this.board = new RequestBoard({ bus, clock, metrics, gatewayId });
    this.flow = new Flow({
      ...{ bus, clock, metrics, gatewayId, fleet, waitMs },
      logger: silentLogger,
      waitingRoom: this.waitingRoom,
      board: this.board,
      localPrefillTokens: options.localPrefillTokens ?? 0,
      ttftGoalMs: 1_000,
    });
    this.fleet.start();
    this.board.start();
  }

  /** A rank on a connection of its own. */
  rank(role: Role, name: string, changes: ConstructorParameters<typeof ScriptedRank>[4] = {}): ScriptedRank {
    const rank = new ScriptedRank(this.network.connect(role), this.clock, role, name, changes);
    this.ranks.push(rank);
    return rank.join();
  }

  /** `prefill` and `decode` ranks named p1, p2, ... and d1, d2, ..., heard of. */
  async fleetOf(prefill: number, decode: number): Promise<{ readonly p: ScriptedRank[]; readonly d: ScriptedRank[] }> {
    const p = Array.from({ length: prefill }, (_, i) => this.rank("prefill", `p${i + 1}`));
    const d = Array.from({ length: decode }, (_, i) => this.rank("decode", `d${i + 1}`));
    await this.clock.settle();
    return { p, d };
  }

  send(
    options: {
      readonly share?: Share;
      readonly prompt?: number;
      readonly maxNewTokens?: number;
      readonly deadlineMs?: number;
      readonly maxWaitMs?: number;
      readonly abort?: AbortController;
      readonly onTokens?: (soFar: number) => "more" | "enough" | undefined;
    } = {},
  ): Ride {
    const ride = {
      tokens: [] as number[],
      progress: [] as FlowProgress[],
      abort: options.abort ?? new AbortController(),
      settled: null as Settled | null,
      error: null as MargayError | null,
      use: null as RequestUse | null,
      ends: 0,
    };
    const request = {
      requestId: `req-${++this.#requests}` as RequestId,
      model: NANO,
      share: options.share ?? { tenant: "local", weight: 1, urgency: 0 },
      generation: generationOf(promptOf(options.prompt ?? 100, this.#requests), {
        maxNewTokens: options.maxNewTokens ?? 20,
      }),
      deadlineMs: this.clock.now() + (options.deadlineMs ?? 600_000),
      maxWaitMs: options.maxWaitMs ?? null,
      signal: ride.abort.signal,
    };
    const listener = {
      onProgress: (progress: FlowProgress) => void ride.progress.push(progress),
      onUse: (use: RequestUse) => {
        ride.use = use;
      },
      onTokens: (tokens: Int32Array) => {
        ride.tokens.push(...tokens);
        return options.onTokens?.(ride.tokens.length) ?? "more";
      },
    };
    this.flow.serve(request, listener).then(
      (settled) => {
        ride.ends++;
        ride.settled = settled;
      },
      (error: MargayError) => {
        ride.ends++;
        ride.error = error;
      },
    );
    return ride;
  }

  /** Advances until the request has ended, at most `withinMs`. */
  async end(ride: Ride, withinMs = 60_000): Promise<Ride> {
    for (let spent = 0; spent < withinMs && ride.ends === 0; spent += 50) await this.clock.advance(50);
    if (ride.ends === 0) throw new Error(`the request did not end within ${withinMs} ms`);
    return ride;
  }

  /** Advances in small steps until `condition` holds. */
  async until(condition: () => boolean, withinMs = 30_000): Promise<void> {
    for (let spent = 0; !condition(); spent += 5) {
      if (spent > withinMs) throw new Error(`the condition did not come to hold within ${withinMs} ms`);
      await this.clock.advance(5);
    }
  }

  /**
   * What every test ends with: five seconds after the last answer nothing is held on any living rank, nor kept or counted
   * in the control plane. Once it has stopped, no timer is left but those of ranks.
   */
  async heldAfterwards(): Promise<string[]> {
    await this.clock.advance(5_000);
    const held = this.ranks.flatMap((rank) => [...rank.held.keys()].map((id) => `${rank.rankId} holds ${id}`));
    for (const rank of this.fleet.snapshot.ranks.values()) {
      if (rank.ownRequests + rank.ownPrefillTokens > 0) held.push(`${rank.rankId} is counted as occupied`);
    }
    if (this.board.size > 0) held.push(`${this.board.size} attempts are on the board`);
    if (this.waitingRoom.waiting(NANO) > 0) held.push("somebody waits");
    if (this.flow.running(NANO) > 0) held.push("a request is counted as running");
    this.waitingRoom.close();
    this.board.stop();
    this.fleet.stop();
    for (const rank of this.ranks) rank.kill();
    // Cancellations that nobody will ever answer.
    await this.clock.advance(130_000);
    if (this.clock.pending > 0) held.push(`${this.clock.pending} timers are left`);
    return held;
  }

  async metric(name: string): Promise<number> {
    let sum = 0;
    for (const line of (await this.metrics.text()).split("\n")) {
      if (line.startsWith(name) && /^[a-z_]+(\{.*\})? /.test(line)) sum += Number(line.slice(line.lastIndexOf(" ")));
    }
    return sum;
  }
}

/** `count` tokens of the answer that every scripted rank gives. */
export function answerOf(count: number): number[] {
  return Array.from({ length: count }, (_, seq) => tokenAt(seq));
}
