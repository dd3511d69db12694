import { blockHashes } from "#protocol/block-hash.ts";
import { BLOCK_TOKENS, type SequenceHandle } from "#protocol/kv.ts";
import type {
  Engine,
  EngineEvent,
  EngineInfo,
  EngineListener,
  EngineOptions,
  EngineStats,
  ExportTarget,
  OpenedSequence,
  SequenceSpec,
  StepLogprobs,
} from "./native.ts";
import { SimGroupRank } from "./sim-group.ts";
import { setSimMask } from "./sim-mask.ts";
import { type SimModel, type SimTimer, simCounters, simInfo } from "./sim-model.ts";
import { beginStep, type SimJob, takePlan } from "./sim-plan.ts";
import { SimPool } from "./sim-pool.ts";
import { SimReceiver } from "./sim-receiver.ts";
import { publishRows, readRows, writeRows } from "./sim-rows.ts";
import { SimSender } from "./sim-sender.ts";
import { know, type SimSequence, simFailure } from "./sim-sequence.ts";
import { nextSimToken, simLogprobs } from "./sim-token.ts";
import { FINISH } from "./step-entries.ts";
import { type StepPlan, unpackPlan } from "./step-plan.ts";

/**
 * `Engine` without a model, an addon or a thread: deterministic tokens (`simToken`), blocks that are counted but hold
 * nothing, steps that take time on an injected clock, pages that travel over a `SimFabric`. For tests and simulation.
 *
 *   submit -> queued (at most two) -> running -> onStep        with nothing queued: the batch -> running -> onStep
 *
 * 1 listeners are never called from inside a call of this object
 * 2 a closed sequence keeps its slot and blocks until the running step ended and its pages were acknowledged
 * 3 unlike native it refuses every row that is not there to compute: a plan that asks for one is a bug of the planner
 */
export class SimEngine implements Engine {
  readonly info: EngineInfo;
  /** Of one of several ranks. */
  readonly group: SimGroupRank | null = null;
  #held = false;
  readonly #options: EngineOptions;
  readonly #model: SimModel;
  readonly #listener: EngineListener;
  readonly #pool: SimPool;
  readonly #sender: SimSender;
  readonly #receiver: SimReceiver;
  readonly #inUse: "attached" | "sending";
  readonly #slots: (SimSequence | null)[];
  readonly #generations: number[];
  #queue: StepPlan[] = [];
  #plans = 0;
  /** The running step. */
  #jobs: readonly SimJob[] = [];
  #stepTimer: SimTimer | null = null;
  #events: EngineEvent[] = [];
  #eventTimer: SimTimer | null = null;
  #closed = false;
  readonly #counters = simCounters();
  constructor(options: EngineOptions, listener: EngineListener, model: SimModel) {
    this.#options = options;
    this.#listener = listener;
    this.#inUse = options.role === "prefill" ? "sending" : "attached";
    this.#model = model;
    const blockBytes = model.attentions * model.pageBytes;
    this.#pool = new SimPool(options.kvBlocks > 0 ? options.kvBlocks : Math.floor(options.kvBytes / blockBytes));
    this.#sender = new SimSender(model, this.#pool, options.rankId, (sequence, event) => {
      this.#emit(event);
      this.#release(sequence);
    });
    this.#receiver = new SimReceiver(
      model,
      this.#pool,
      (handle) => (model.trustsPages ? this.#slots[handle.slot]! : this.#find(handle)),
      (event) => this.#emit(event),
    );
    this.#slots = Array.from({ length: options.slots }, () => null);
    this.#generations = Array.from({ length: options.slots }, () => 1);
    const kvPort = options.role === "decode" ? model.fabric.listen(options.kvHost, options.kvPort, this.#receiver) : 0;
    this.info = simInfo(options, model, this.#pool.size, kvPort);
    if (options.group === undefined) return;
    this.group = new SimGroupRank(model, options.group.exchangeDeadlineMs, {
      hold: (held) => {
        this.#held = held;
        if (!held && this.#stepTimer === null) this.#start();
      },
      failStep: () => {
        this.#jobs = this.#jobs.map((job) => ({ ...job, sequence: null }));
      },
      emit: (event) => this.#emit(event),
    });
  }

  setEpoch(epoch: number): void {
    this.#receiver.epoch = epoch;
  }

  openSequence(spec: SequenceSpec): OpenedSequence {
    this.#requireOpen();
    const { tokens, promptLength, maxNewTokens } = spec.generation;
    const { contextLength } = this.info;
    if (tokens.length >= contextLength) throw simFailure("too_long", `${tokens.length} tokens fill the context`);
    if (tokens.length >= promptLength + maxNewTokens) throw simFailure("bad_argument", "nothing is left to generate");
    const most = Math.min(promptLength + maxNewTokens, contextLength);
    const capacity = Math.max(tokens.length, Math.min(spec.reserve, most));
    const slot = this.#slots.indexOf(null);
    if (slot < 0) throw simFailure("no_slot", "every slot is taken");
    const prefix = blockHashes(this.info.modelHash, tokens, tokens.length - 1);
    const lease = this.#pool.open(prefix, Math.ceil(capacity / BLOCK_TOKENS), this.#inUse);
    if (lease === null) throw simFailure("no_blocks", "not enough free blocks");
    const cachedTokens = lease.shared * BLOCK_TOKENS;
    this.#counters.prefixCachedTokens += cachedTokens;
    const receive = spec.mode === "receive";
    const sequence: SimSequence = {
      handle: { slot, generation: this.#generations[slot]! },
      spec,
      lease,
      cachedTokens,
      tokens: [],
      digests: [],
      hashes: prefix,
      length: cachedTokens,
      capacity,
      runnable: !receive,
      batched: false,
      willRun: false,
      mask: null,
      finish: FINISH.none,
      closing: null,
      exporting: null,
      arrived: receive ? new Set() : null,
      arrivalMs: 0,
      lapse: null,
    };
    for (const token of tokens) know(sequence, token);
    if (receive) {
      sequence.lapse = this.#model.clock.after(spec.deadlineMs - this.#model.clock.now(), () => {
        this.#emit({ kind: "lapsed", handle: sequence.handle });
        this.#end(sequence, true);
      });
    }
    this.#slots[slot] = sequence;
    this.#emitCacheChanges();
    return { handle: sequence.handle, cachedTokens };
  }

  exportTo(handle: SequenceHandle, target: ExportTarget): void {
    const sequence = this.#require(handle);
    if (sequence.exporting !== null || !sequence.runnable) throw simFailure("bad_state", "cannot be exported");
    const { clock } = this.#model;
    sequence.exporting = {
      target,
      deadline: clock.after(target.deadlineMs - clock.now(), () => this.#sender.end(sequence, "late")),
      startMs: clock.monotonic(),
      announced: Math.floor(target.cachedTokens / BLOCK_TOKENS),
      acked: Math.floor(target.cachedTokens / BLOCK_TOKENS),
    };
    this.#sender.written(sequence);
  }

  attach(handle: SequenceHandle, firstToken: number | null): number {
    const sequence = this.#require(handle);
    const { arrived, lease } = sequence;
    if (arrived === null) throw simFailure("bad_state", "does not wait for pages");
    if (firstToken !== null && !this.#receiver.complete(sequence)) throw simFailure("bad_state", "pages are missing");
    for (const index of arrived) this.#pool.set(lease.blocks[index]!, "attached");
    const given = sequence.tokens.length;
    if (firstToken !== null) {
      sequence.length = given;
      know(sequence, firstToken);
    } else if (this.#receiver.complete(sequence) && given % BLOCK_TOKENS !== 0) {
      sequence.length = given - 1;
    } else {
      while (arrived.has(sequence.length / BLOCK_TOKENS) && sequence.length + BLOCK_TOKENS < given) {
        sequence.length += BLOCK_TOKENS;
      }
    }
    publishRows(this.#pool, sequence, sequence.cachedTokens, this.info.modelHash);
    sequence.arrived = null;
    sequence.lapse?.cancel();
    sequence.runnable = true;
    this.#emitCacheChanges();
    return sequence.length;
  }

  closeSequence(handle: SequenceHandle, keep: boolean): boolean {
    const sequence = this.#require(handle);
    this.#end(sequence, keep);
    return this.#runs(sequence);
  }

  setMask(handle: SequenceHandle, mask: Uint32Array | null): void {
    setSimMask(this.#require(handle), mask, this.info.vocabSize);
    if (this.#stepTimer === null) this.#start();
  }

  submit(packed: Int32Array): number {
    this.#requireOpen();
    if (this.#queue.length >= 2) throw simFailure("queue_full", "two plans are queued");
    const plan = unpackPlan(packed);
    const require = (handle: SequenceHandle) => this.#require(handle);
    takePlan(plan, { ...this.info, pool: this.#pool, sequences: this.#slots, queued: this.#queue, require });
    this.#queue.push(plan);
    const number = this.#plans++;
    if (this.#stepTimer === null) this.#start();
    return number;
  }

  stats(): EngineStats {
    const sequences = this.#slots.filter((sequence) => sequence !== null).length;
    const pagesSent = this.#sender.pages;
    return {
      ...this.#counters,
      ...this.#pool.stats(),
      sequences,
      pagesSent,
      bytesSent: pagesSent * this.info.pageBytes,
      pagesReceived: this.#receiver.pages,
      bytesReceived: this.#receiver.pages * this.info.pageBytes,
      framesRefused: { ...this.#receiver.refused },
      duplicatePages: this.#receiver.duplicatePages,
    };
  }

  prefixHashes(): Uint8Array {
    return Buffer.from(this.#pool.hashes().join(""), "latin1");
  }

  startTrace(): void {}
  takeTrace = () => ({ names: [], threads: [], spans: new Float64Array() });
  /** The first broken invariant that showed by itself: cheap. */
  get violation(): string | null {
    return this.#pool.violation;
  }

  checkInvariants(): string | null {
    return this.#pool.broken(this.#slots.flatMap((sequence) => sequence?.lease.blocks ?? []));
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.group?.stop();
    this.#stepTimer?.cancel();
    this.#eventTimer?.cancel();
    for (const sequence of this.#slots) {
      sequence?.lapse?.cancel();
      sequence?.exporting?.deadline.cancel();
    }
    if (this.info.kvPort !== 0) this.#model.fabric.leave(this.#options.kvHost, this.info.kvPort, this.#receiver);
  }

  /** The engine dies, as a failed engine thread would. */
  fail(message: string): void {
    void this.close();
    this.#model.clock.after(0, () => this.#listener.onFatal(message));
  }

  #requireOpen(): void {
    if (this.#closed) throw simFailure("closed", "the engine is closed");
  }

  #require(handle: SequenceHandle): SimSequence {
    this.#requireOpen();
    const sequence = this.#find(handle);
    if (sequence === null) throw simFailure("stale_handle", `slot ${handle.slot} has moved on`);
    return sequence;
  }

  #find(handle: SequenceHandle): SimSequence | null {
    const sequence = this.#slots[handle.slot] ?? null;
    return sequence?.closing === null && sequence.handle.generation === handle.generation ? sequence : null;
  }

  /** Begins a step: the oldest plan's, or the batch's as it is. */
  #start(): void {
    if (this.#held) return;
    const jobs = beginStep(this.#queue[0] ?? [], this.#slots, (handle) => this.#find(handle));
    if (this.#queue.length === 0 && jobs.length === 0) return;
    this.#jobs = jobs;
    const ms = this.#model.stepMs + jobs.reduce((sum, { rows }) => sum + rows, 0) * this.#model.rowMs;
    const number = this.#queue.length > 0 ? this.#plans - this.#queue.length : -1;
    this.#stepTimer = this.#model.clock.after(ms, () => this.#finishStep(number, ms));
  }

  #finishStep(plan: number, computeMs: number): void {
    const entries: number[] = [];
    const tokens: number[] = [];
    const logprobs: StepLogprobs[] = [];
    for (const { handle, rows, sequence } of this.#jobs) {
      const { slot, generation } = handle;
      if (sequence === null || sequence.closing !== null) {
        entries.push(slot, generation, 0, 0, FINISH.skipped, 0);
        continue;
      }
      const before = tokens.length;
      this.#compute(sequence, rows, tokens, logprobs);
      entries.push(slot, generation, rows, tokens.length - before, sequence.finish, sequence.length);
    }
    this.#jobs = [];
    this.#stepTimer = null;
    if (plan >= 0) this.#queue.shift();
    const step = this.#counters.steps++;
    this.#counters.computeMs += computeMs;
    this.#start();
    for (const sequence of this.#slots) if (sequence !== null) this.#release(sequence);
    this.#emitCacheChanges();
    this.#deliver();
    this.#listener.onStep({
      step,
      plan,
      entries: Int32Array.from(entries),
      tokens: Int32Array.from(tokens),
      logprobs,
      startMs: this.#model.clock.now() - computeMs,
      computeMs,
    });
  }

  /** Computes rows, and notes the token they produce. */
  #compute(sequence: SimSequence, rows: number, tokens: number[], logprobs: StepLogprobs[]): void {
    const { generation } = sequence.spec;
    const from = sequence.length;
    const given = generation.tokens.length;
    sequence.length += rows;
    const prompt = Math.min(sequence.length, given) - Math.min(from, given);
    this.#counters.prefillTokens += prompt;
    this.#counters.decodeTokens += rows - prompt;
    writeRows(this.#pool, sequence, from, this.#inUse);
    publishRows(this.#pool, sequence, from, this.info.modelHash);
    this.#sender.written(sequence);
    if (sequence.length < sequence.tokens.length) return;

    const promptDigest = readRows(this.#pool, sequence, generation.promptLength - 1);
    const { token, finish } = nextSimToken(this.#model, sequence.tokens, promptDigest, generation, sequence.mask);
    if (sequence.mask !== null) sequence.mask = "awaited";
    sequence.finish = finish;
    if (finish !== FINISH.none) sequence.willRun = false;
    if (token < 0) return;
    know(sequence, token);
    tokens.push(token);
    const { topLogprobs } = generation.sampling;
    if (topLogprobs >= 0) logprobs.push(simLogprobs(sequence.handle.slot, token, topLogprobs, this.info.vocabSize));
  }

  #end(sequence: SimSequence, keep: boolean): void {
    sequence.closing = { keep };
    sequence.willRun = false;
    this.#generations[sequence.handle.slot]!++;
    sequence.lapse?.cancel();
    // What was not computed will never be: the peer need not wait for the deadline to hear so.
    if (sequence.length < sequence.spec.generation.tokens.length) this.#sender.end(sequence, "closed");
    this.#release(sequence);
    this.#emitCacheChanges();
  }

  #release(sequence: SimSequence): void {
    if (sequence.closing === null || this.#slots[sequence.handle.slot] !== sequence) return;
    if (this.#runs(sequence) || sequence.exporting !== null) return;
    this.#pool.release(sequence.lease, sequence.closing.keep);
    this.#slots[sequence.handle.slot] = null;
  }

  #runs(sequence: SimSequence): boolean {
    return this.#jobs.some((job) => job.sequence === sequence);
  }

  #emitCacheChanges(): void {
    const { stored, removed } = this.#pool.takeChanges();
    if (stored.length === 0 && removed.length === 0) return;
    const pack = (hashes: readonly string[]) => Uint8Array.from(Buffer.from(hashes.join(""), "latin1"));
    this.#emit({ kind: "kv", stored: pack(stored), removed: pack(removed) });
  }

  #emit(event: EngineEvent): void {
    if (this.#closed) return;
    this.#events.push(event);
    this.#eventTimer ??= this.#model.clock.after(0, () => this.#deliver());
  }

  #deliver(): void {
    this.#eventTimer?.cancel();
    this.#eventTimer = null;
    if (this.#events.length === 0) return;
    const events = this.#events;
    this.#events = [];
    this.#listener.onEvents(events);
  }
}

/** `openEngine` of a simulated model. */
export function simEngineOpener(
  model: SimModel,
): (options: EngineOptions, listener: EngineListener) => Promise<SimEngine> {
  return async (options, listener) => new SimEngine(options, listener, model);
}
