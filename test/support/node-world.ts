import { expect } from "vitest";
import type { Bus } from "#protocol/bus/bus.ts";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import type { StartReply } from "#protocol/decode.ts";
import type { ErrorCode } from "#protocol/errors.ts";
import { ModelName, type RankId, rankIdOf, WorkerId } from "#protocol/ids.ts";
import type { Reservation } from "#protocol/kv.ts";
import type { PrefillDone } from "#protocol/prefill.ts";
import type { Generation, RequestHead } from "#protocol/request.ts";
import { silentLogger } from "#service/logger.ts";
import { createMetrics, type Metrics } from "#service/metrics.ts";
import type { WorkerConfig } from "#service/worker-config.ts";
import { simWorkerConfig } from "../../control-plane/simulate/sim-worker-config.ts";
import { createDecodeNode, type DecodeNode } from "../../decode-node/decode-node.ts";
import type { EngineEvent } from "../../native/binding/native.ts";
import { type SimEngine, simEngineOpener } from "../../native/binding/sim-engine.ts";
import { SimFabric } from "../../native/binding/sim-fabric.ts";
import { type SimModel, simModel } from "../../native/binding/sim-model.ts";
import { simToken } from "../../native/binding/sim-token.ts";
import { createPrefillNode, type PrefillNode, type PrefillNodeParts } from "../../prefill-node/prefill-node.ts";
import { FakeClock, fakeRandom } from "./fake-clock.ts";
import { FakeGateway } from "./fake-gateway.ts";

export interface RankOptions {
  readonly name?: string;
  readonly slots?: number;
  readonly kvBlocks?: number;
  readonly maxStepTokens?: number;
  readonly tpotGoalMs?: number;
  readonly model?: Partial<SimModel>;
}

/** One node of a world, with its insides. */
export interface RankUnderTest<N extends PrefillNode | DecodeNode = PrefillNode | DecodeNode> {
  readonly node: N;
  readonly engine: SimEngine;
  /** Tells the node what the simulated engine never tells by itself. */
  readonly tell: (event: EngineEvent) => void;
  readonly rankId: RankId;
  readonly epoch: number;
  readonly bus: Bus;
  readonly metrics: Metrics;
  /** What the node asked of its process. */
  readonly stops: { readonly reason: string; readonly deadlineMs: number }[];
  readonly failures: unknown[];
  /** Blocks that are neither free nor cached. */
  held(): number;
  /** Value of one series, 0 when it was never touched. */
  metric(series: string): Promise<number>;
}

/** Nodes over simulated engines, a bus in memory, and time that moves only when told. */
export class NodeWorld {
  readonly clock = new FakeClock();
  readonly fabric = new SimFabric();
  readonly network = new MemoryNetwork(this.clock, fakeRandom(1));
  readonly gateway = new FakeGateway(this.network.connect(), this.clock);
  readonly ranks: RankUnderTest[] = [];

  /** Moves time until `promise` settles, `limitMs` at most. */
  async settle<T>(promise: Promise<T>, limitMs = 30_000): Promise<T> {
    let settled = false;
    const mark = () => {
      settled = true;
    };
    promise.then(mark, mark);
    await this.clock.advance(0);
    for (let ms = 0; !settled && ms < limitMs; ms++) await this.clock.advance(1);
    if (!settled) throw new Error(`nothing settled within ${limitMs} ms`);
    return await promise;
  }

  /** Moves time until `holds`, `limitMs` at most. */
  async until(holds: () => boolean, limitMs = 30_000): Promise<void> {
    for (let ms = 0; !holds(); ms++) {
      if (ms > limitMs) throw new Error(`did not come true within ${limitMs} ms`);
      await this.clock.advance(1);
    }
  }

  async prefill(options: RankOptions = {}): Promise<RankUnderTest<PrefillNode>> {
    return this.#open("prefill", options, createPrefillNode);
  }

  async decode(options: RankOptions = {}): Promise<RankUnderTest<DecodeNode>> {
    return this.#open("decode", options, createDecodeNode);
  }

  /** Disposes everything; every pool must be whole and hold nothing. */
  async close(): Promise<void> {
    await this.clock.advance(50);
    for (const { engine, held, failures } of this.ranks) {
      expect(failures).toEqual([]);
      expect(engine.checkInvariants()).toBeNull();
      expect(held()).toBe(0);
      expect(engine.stats().sequences).toBe(0);
    }
    for (const { node } of this.ranks) await this.settle(node[Symbol.asyncDispose]());
  }

  /** Step 2 of a request's life. */
  async reserve(
    d: RankUnderTest<DecodeNode>,
    head: RequestHead,
    generation: Generation,
    deadlineMs?: number,
  ): Promise<Reservation> {
    const reply = await this.settle(this.gateway.reserve(d.rankId, d.epoch, head, generation, deadlineMs));
    if (reply.kind !== "reserved") throw new Error(`not reserved: ${reply.code} ${reply.detail}`);
    return reply.reservation;
  }

  /** Steps 2 to 7: reserve, prefill, start. */
  async serve(
    p: RankUnderTest<PrefillNode>,
    d: RankUnderTest<DecodeNode>,
    head: RequestHead,
    generation: Generation,
  ): Promise<{ readonly reservation: Reservation; readonly outcome: PrefillDone; readonly started: StartReply }> {
    const reservation = await this.reserve(d, head, generation);
    await this.settle(this.gateway.prefill(p.rankId, p.epoch, head, generation, reservation));
    await this.until(() => this.gateway.outcomesOf(head).length > 0);
    const outcome = this.gateway.outcomesOf(head)[0]!;
    if (outcome.kind !== "prefill-done") throw new Error(outcome.code);
    const started = await this.settle(this.gateway.start(reservation, head, outcome.firstToken));
    return { reservation, outcome, started };
  }

  /** Lets the decode rank compute the prompt. */
  async serveLocally(
    d: RankUnderTest<DecodeNode>,
    head: RequestHead,
    generation: Generation,
  ): Promise<{ readonly reservation: Reservation; readonly started: StartReply }> {
    const reservation = await this.reserve(d, head, generation);
    return { reservation, started: await this.settle(this.gateway.start(reservation, head, null)) };
  }

  /** Waits for the last word on a request. */
  async done(head: RequestHead): Promise<void> {
    await this.until(() => this.gateway.stream(head.requestId).done !== null);
    await this.clock.advance(5);
  }

  async #open<N extends PrefillNode | DecodeNode>(
    role: "prefill" | "decode",
    options: RankOptions,
    create: (parts: PrefillNodeParts) => N,
  ): Promise<RankUnderTest<N>> {
    const workerId = WorkerId.parse(options.name ?? `${role}${this.ranks.length}`);
    const bus = this.network.connect(role);
    const metrics = createMetrics({ processMetrics: false });
    const model = simModel(this.clock, this.fabric, options.model);
    const opener = simEngineOpener(model);
    const stops: { reason: string; deadlineMs: number }[] = [];
    const failures: unknown[] = [];
    let engine: SimEngine | null = null;
    let tell: (event: EngineEvent) => void = () => {};
    const node = create({
      config: configOf(workerId, options),
      bus,
      clock: this.clock,
      random: fakeRandom(this.ranks.length + 2),
      logger: silentLogger,
      metrics,
      openEngine: async (engineOptions, listener) => {
        engine = await opener(engineOptions, listener);
        tell = (event) => listener.onEvents([event]);
        return engine;
      },
      healthUrl: "http://127.0.0.1:1",
      pid: 1,
      bornMs: 0,
      signal: new AbortController().signal,
      stop: (reason, deadlineMs) => void stops.push({ reason, deadlineMs }),
      fail: (error) => void failures.push(error),
    });
    await this.settle(node.start());
    const opened = engine as SimEngine | null;
    if (opened === null) throw new Error("the node opened no engine");
    const rankId = rankIdOf(workerId, 0);
    await this.until(() => this.gateway.beats.some((beat) => beat.rankId === rankId));
    const epoch = this.gateway.beats.findLast((beat) => beat.rankId === rankId)!.epoch;
    const rank: RankUnderTest<N> = {
      node,
      engine: opened,
      tell,
      rankId,
      epoch,
      bus,
      metrics,
      stops,
      failures,
      held() {
        const { free, cached, ...rest } = opened.stats().blocks;
        void free;
        void cached;
        return Object.values(rest).reduce((a, b) => a + b, 0);
      },
      async metric(series) {
        const line = (await metrics.text()).split("\n").find((text) => text.startsWith(`${series} `));
        return line === undefined ? 0 : Number(line.slice(series.length + 1));
      },
    };
    this.ranks.push(rank);
    return rank;
  }
}

/** A refusal with this code. */
export function refused(code: ErrorCode): unknown {
  return expect.objectContaining({ kind: "refused", code });
}

/** Generated tokens number `from` to `to` of a request, as every simulated engine gives them. */
export function simTokens({ tokens, promptLength }: Generation, from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => simToken(tokens, promptLength, promptLength + from + i, 2048));
}

function configOf(workerId: WorkerId, options: RankOptions): WorkerConfig {
  const { slots = 8, kvBlocks = 64, maxStepTokens = 128, tpotGoalMs = 0 } = options;
  const given = { workerId, modelName: ModelName.parse("sim"), tpotGoalMs };
  return simWorkerConfig(given, { slots, kvBlocks, maxStepTokens });
}
