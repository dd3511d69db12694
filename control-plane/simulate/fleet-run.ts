import { DecodeGroup, type Stream } from "./decode-group.ts";
import type { FleetModel } from "./fleet-model.ts";
import type { TraceRequest } from "./trace-file.ts";

/** Groups of each role. */
export interface Groups {
  readonly prefill: number;
  readonly decode: number;
}

/** What a policy sees at one moment. Rates are over the last `PERIOD_MS`. */
export interface FleetSignals {
  readonly nowMs: number;
  readonly model: FleetModel;
  /** Requests, new prompt tokens' work (seconds of one prefill group) and output tokens that came since the last look. */
  readonly arrived: number;
  readonly arrivedPrefillMs: number;
  readonly arrivedOutput: number;
  readonly arrivedContext: number;
  /** First tokens that came, and those of them later than the goal. */
  readonly firstTokens: number;
  readonly lateTokens: number;
  /** Waiting for prefill: how many, their work, the first one's age. */
  readonly queued: number;
  readonly queuedPrefillMs: number;
  readonly oldestMs: number;
  /** Being computed; decoding; waiting for a decode group. */
  readonly computing: number;
  readonly streams: number;
  readonly queuedStreams: number;
  readonly ready: Groups;
  readonly wanted: Groups;
}

/** Says how many groups there should be; asked every PERIOD_MS. */
export type Policy = (signals: FleetSignals) => Groups;

export const PERIOD_MS = 2_000;

/** What became of a request. */
export interface Served {
  readonly atMs: number;
  readonly ttftMs: number;
  readonly tpotMs: number;
  readonly outputTokens: number;
}

export interface FleetRun {
  readonly served: readonly Served[];
  readonly gpuSeconds: number;
  readonly endMs: number;
  /** Groups over time, for drawing: at every look. */
  readonly history: readonly (Groups & { readonly atMs: number; readonly waiting: number })[];
}

interface PrefillGroup {
  readonly bornMs: number;
  readonly readyMs: number;
  busyUntilMs: number;
  leaving: boolean;
}

interface Waiting extends TraceRequest {
  readonly workMs: number;
}

interface Computing {
  readonly endMs: number;
  readonly stream: Stream;
}

/** Longer than this after the last request nothing is waited for. */
const TAIL_MS = 1_800_000;

/**
 * A fleet of prefill and decode groups under a policy: a model of queues, not of the protocol. One queue before the prefill
 * groups, each of which computes one prompt at a time; one before the decode groups, which hold what fits memory and the TPOT
 * goal, each stream as fast as its group's step. Groups cost from the wish for them until they have drained.
 */
export function runFleet(
  trace: readonly TraceRequest[],
  model: FleetModel,
  policy: Policy,
  first: Groups,
  /** What comes and what it costs before counts for nothing: the fleet is there already when it begins. */
  countedFromMs = 0,
): FleetRun {
  return new FleetSimulation(trace, model, policy, first, countedFromMs).run();
}

class FleetSimulation {
  readonly #trace: readonly TraceRequest[];
  readonly #model: FleetModel;
  readonly #policy: Policy;
  readonly #countedFromMs: number;
  readonly #prefill: PrefillGroup[] = [];
  readonly #decode: DecodeGroup[] = [];
  readonly #queue: Waiting[] = [];
  #head = 0;
  readonly #handover: Stream[] = [];
  #handoverHead = 0;
  readonly #served: Served[] = [];
  readonly #history: FleetRun["history"][number][] = [];
  #wanted: Groups = { prefill: 0, decode: 0 };
  #gpuMs = 0;
  #nowMs = 0;
  #next = 0;
  #arrived = { count: 0, workMs: 0, output: 0, context: 0 };
  #first = { count: 0, late: 0 };
  #queuedWorkMs = 0;
  #computing: Computing[] = [];

  constructor(trace: readonly TraceRequest[], model: FleetModel, policy: Policy, first: Groups, countedFromMs: number) {
    this.#countedFromMs = countedFromMs;
    this.#trace = trace;
    this.#model = model;
    this.#policy = policy;
    // What is there at the beginning is ready.
    for (let i = 0; i < first.prefill; i++)
      this.#prefill.push({ bornMs: 0, readyMs: 0, busyUntilMs: 0, leaving: false });
    for (let i = 0; i < first.decode; i++) this.#decode.push(new DecodeGroup(model, 0, 0));
    this.#wanted = first;
  }

  run(): FleetRun {
    const lastMs = (this.#trace.at(-1)?.atMs ?? 0) + TAIL_MS;
    let lookMs = 0;
    while (this.#served.length < this.#trace.length && this.#nowMs <= lastMs) {
      const nextMs = Math.min(lookMs, this.#nextEventMs());
      this.#nowMs = nextMs;
      this.#arrive();
      this.#finishPrefill();
      for (const group of this.#decode) group.advance(this.#nowMs, (stream) => this.#finish(stream));
      if (this.#nowMs >= lookMs) {
        this.#look();
        lookMs += PERIOD_MS;
      }
      this.#startPrefill();
      this.#startDecode();
    }
    for (const { bornMs } of this.#prefill) this.#charge("prefill", bornMs);
    for (const { bornMs } of this.#decode) this.#charge("decode", bornMs);
    return {
      served: this.#served.filter(({ atMs }) => atMs >= this.#countedFromMs),
      gpuSeconds: this.#gpuMs / 1000,
      endMs: this.#nowMs,
      history: this.#history,
    };
  }

  #nextEventMs(): number {
    let next = this.#trace[this.#next]?.atMs ?? Number.POSITIVE_INFINITY;
    for (const { endMs } of this.#computing) next = Math.min(next, endMs);
    for (const group of this.#decode)
      next = Math.min(next, group.nextEndMs, group.readyMs > this.#nowMs ? group.readyMs : next);
    for (const { readyMs } of this.#prefill) if (readyMs > this.#nowMs) next = Math.min(next, readyMs);
    return Math.max(next, this.#nowMs);
  }

  #arrive(): void {
    for (; (this.#trace[this.#next]?.atMs ?? Number.POSITIVE_INFINITY) <= this.#nowMs; this.#next++) {
      const request = this.#trace[this.#next]!;
      const workMs = this.#model.prefillMs(request.promptTokens, request.cachedTokens);
      this.#queue.push({ ...request, workMs });
      this.#queuedWorkMs += workMs;
      this.#arrived.count++;
      this.#arrived.workMs += workMs;
      this.#arrived.output += request.outputTokens;
      this.#arrived.context += request.promptTokens + request.outputTokens / 2;
    }
  }

  #startPrefill(): void {
    for (const group of this.#prefill) {
      if (this.#head >= this.#queue.length) return;
      if (group.leaving || group.readyMs > this.#nowMs || group.busyUntilMs > this.#nowMs) continue;
      const request = this.#queue[this.#head++]!;
      this.#queuedWorkMs -= request.workMs;
      const endMs = this.#nowMs + request.workMs;
      group.busyUntilMs = endMs;
      this.#computing.push({ endMs, stream: { request, firstMs: endMs, doneAt: 0 } });
    }
  }

  #finishPrefill(): void {
    if (!this.#computing.some(({ endMs }) => endMs <= this.#nowMs)) return;
    const rest: Computing[] = [];
    for (const one of this.#computing) {
      if (one.endMs > this.#nowMs) {
        rest.push(one);
        continue;
      }
      this.#first.count++;
      if (one.endMs - one.stream.request.atMs > this.#model.spec.ttftGoalMs) this.#first.late++;
      if (one.stream.request.outputTokens === 1) this.#finish(one.stream);
      else this.#handover.push(one.stream);
    }
    this.#computing = rest;
    this.#dropLeaving();
  }

  #startDecode(): void {
    while (this.#handoverHead < this.#handover.length) {
      const stream = this.#handover[this.#handoverHead]!;
      let best: DecodeGroup | null = null;
      for (const group of this.#decode) {
        if (!group.hasRoom(stream, this.#nowMs)) continue;
        if (best === null || group.streams < best.streams) best = group;
      }
      if (best === null) return;
      best.join(stream, this.#nowMs);
      this.#handoverHead++;
    }
  }

  #finish(stream: Stream): void {
    const { request, firstMs } = stream;
    const { outputTokens, atMs, promptTokens } = request;
    const tailMs = outputTokens > 1 ? this.#nowMs + this.#model.transferMs(promptTokens) - firstMs : 0;
    this.#served.push({
      atMs,
      ttftMs: firstMs - atMs,
      tpotMs: outputTokens > 1 ? tailMs / (outputTokens - 1) : 0,
      outputTokens,
    });
  }

  #look(): void {
    const { count: arrived, workMs, output, context } = this.#arrived;
    this.#arrived = { count: 0, workMs: 0, output: 0, context: 0 };
    const { count: firstTokens, late: lateTokens } = this.#first;
    this.#first = { count: 0, late: 0 };
    const first = this.#queue[this.#head];
    const ready = {
      prefill: this.#prefill.filter(({ readyMs, leaving }) => !leaving && readyMs <= this.#nowMs).length,
      decode: this.#decode.filter(({ readyMs, leaving }) => !leaving && readyMs <= this.#nowMs).length,
    };
    const signals: FleetSignals = {
      ...{ nowMs: this.#nowMs, model: this.#model, ready, wanted: this.#wanted, arrived },
      ...{ arrivedPrefillMs: workMs, arrivedOutput: output, arrivedContext: context, firstTokens, lateTokens },
      queued: this.#queue.length - this.#head,
      queuedPrefillMs: this.#queuedWorkMs,
      oldestMs: first === undefined ? 0 : this.#nowMs - first.atMs,
      computing: this.#computing.length,
      streams: this.#decode.reduce((sum, { streams }) => sum + streams, 0),
      queuedStreams: this.#handover.length - this.#handoverHead,
    };
    const wanted = this.#policy(signals);
    const bounded = (groups: number): number => Math.min(this.#model.spec.mostGroups, Math.max(1, groups));
    this.#wanted = { prefill: bounded(wanted.prefill), decode: bounded(wanted.decode) };
    this.#history.push({ atMs: this.#nowMs, ...this.#wanted, waiting: signals.queued + signals.queuedStreams });
    this.#scale();
  }

  #scale(): void {
    const readyMs = this.#nowMs + this.#model.spec.coldStartMs;
    const { prefill, decode } = this.#wanted;
    const keptP = this.#prefill.filter(({ leaving }) => !leaving);
    for (let i = keptP.length; i < prefill; i++) {
      this.#prefill.push({ bornMs: this.#nowMs, readyMs, busyUntilMs: 0, leaving: false });
    }
    // Those that start cost least to lose, then those that do nothing.
    keptP.sort((a, b) => b.readyMs - a.readyMs || a.busyUntilMs - b.busyUntilMs);
    for (const group of keptP.slice(0, Math.max(0, keptP.length - prefill))) group.leaving = true;
    const keptD = this.#decode.filter(({ leaving }) => !leaving);
    for (let i = keptD.length; i < decode; i++) this.#decode.push(new DecodeGroup(this.#model, this.#nowMs, readyMs));
    keptD.sort((a, b) => b.readyMs - a.readyMs || a.streams - b.streams);
    for (const group of keptD.slice(0, Math.max(0, keptD.length - decode))) group.leaving = true;
    this.#dropLeaving();
  }

  #dropLeaving(): void {
    for (let i = this.#prefill.length - 1; i >= 0; i--) {
      const { leaving, busyUntilMs, bornMs } = this.#prefill[i]!;
      if (!leaving || busyUntilMs > this.#nowMs) continue;
      this.#charge("prefill", bornMs);
      this.#prefill.splice(i, 1);
    }
    for (let i = this.#decode.length - 1; i >= 0; i--) {
      const { leaving, streams, bornMs } = this.#decode[i]!;
      if (!leaving || streams > 0) continue;
      this.#charge("decode", bornMs);
      this.#decode.splice(i, 1);
    }
  }

  #charge(role: keyof Groups, bornMs: number): void {
    const { prefillGpus, decodeGpus } = this.#model.spec;
    const fromMs = Math.max(bornMs, this.#countedFromMs);
    this.#gpuMs += Math.max(0, this.#nowMs - fromMs) * (role === "prefill" ? prefillGpus : decodeGpus);
  }
}
