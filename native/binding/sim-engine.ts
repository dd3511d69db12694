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
import type { SimModel, SimTimer } from "./sim-model.ts";
import { SimPool } from "./sim-pool.ts";
import { SimReceiver } from "./sim-receiver.ts";
import { SimSender } from "./sim-sender.ts";
import { computableRows, type SimSequence, simFailure } from "./sim-sequence.ts";
import { nextSimToken, simLogprobs } from "./sim-token.ts";
import { FINISH, STEP_ENTRY_WIDTH } from "./step-entries.ts";
import { PLAN_ENTRY_WIDTH, plannedRows } from "./step-plan.ts";

interface Step {
  readonly number: number;
  readonly plan: Int32Array;
}

/**
 * `Engine` without a model, an addon or a thread: deterministic tokens (`simToken`), blocks that are counted but hold
 * nothing, steps that take time on an injected clock, pages that travel over a `SimFabric`. For tests and simulation.
 *
 *   submit -> queued (at most two) -> running -> onStep
 *
 * 1 listeners are never called from inside a call of this object
 * 2 a closed sequence keeps its slot and blocks until the running step ended and its pages were acknowledged
 * 3 unlike native it refuses every row that is not there to compute: a plan that asks for one is a bug of the planner
 */
export class SimEngine implements Engine {
  readonly info: EngineInfo;
  readonly #options: EngineOptions;
  readonly #model: SimModel;
  readonly #listener: EngineListener;
  readonly #pool: SimPool;
  readonly #sender: SimSender;
  readonly #receiver: SimReceiver;
  readonly #inUse: "attached" | "sending";
  readonly #slots: (SimSequence | null)[];
  readonly #generations: number[];
  #queue: Step[] = [];
  #stepTimer: SimTimer | null = null;
  #events: EngineEvent[] = [];
  #eventTimer: SimTimer | null = null;
  #closed = false;
  readonly #counters = {
    steps: 0,
    computeMs: 0,
    prefillTokens: 0,
    decodeTokens: 0,
    prefixCachedTokens: 0,
  };
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
      (handle) => this.#find(handle),
      (event) => this.#emit(event),
    );
    this.#slots = Array.from({ length: options.slots }, () => null);
    this.#generations = Array.from({ length: options.slots }, () => 1);
    this.info = {
      modelHash: model.modelHash,
      layout: `sim-a${model.attentions}`,
      vocabSize: model.vocabSize,
      contextLength: model.contextLength,
      attentions: model.attentions,
      pageBytes: model.pageBytes,
      kvBlocks: this.#pool.size,
      slots: options.slots,
      maxStepTokens: options.maxStepTokens,
      backend: "ref",
      isa: "sim",
      threads: 1,
      kvPort: options.role === "decode" ? model.fabric.listen(options.kvHost, options.kvPort, this.#receiver) : 0,
      hostKey: "sim",
      weightBytes: 0,
      packedHit: false,
      warnings: [],
    };
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
    const capacity = spec.reserve === "prompt" ? tokens.length : Math.min(promptLength + maxNewTokens, contextLength);
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
      tokens: Array.from(tokens),
      length: cachedTokens,
      runnable: !receive,
      finish: FINISH.none,
      closing: null,
      exporting: null,
      arrived: receive ? new Set() : null,
      arrivalMs: 0,
      lapse: null,
    };
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
      announced: target.cachedTokens / BLOCK_TOKENS,
      acked: target.cachedTokens / BLOCK_TOKENS,
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
      sequence.tokens.push(firstToken);
    } else {
      while (arrived.has(sequence.length / BLOCK_TOKENS) && sequence.length + BLOCK_TOKENS < given) {
        sequence.length += BLOCK_TOKENS;
      }
    }
    this.#publish(sequence, sequence.cachedTokens);
    sequence.arrived = null;
    sequence.lapse?.cancel();
    sequence.runnable = true;
    this.#emitCacheChanges();
    return sequence.length;
  }

  closeSequence(handle: SequenceHandle, keep: boolean): void {
    this.#end(this.#require(handle), keep);
  }

  submit(plan: Int32Array): number {
    this.#requireOpen();
    if (this.#queue.length >= 2) throw simFailure("queue_full", "two steps are queued");
    const seen = new Set<number>();
    let total = 0;
    for (let at = 0; at < plan.length; at += PLAN_ENTRY_WIDTH) {
      const [slot, generation, rows] = plan.subarray(at, at + PLAN_ENTRY_WIDTH) as unknown as [number, number, number];
      const sequence = this.#require({ slot, generation });
      if (!sequence.runnable) throw simFailure("bad_state", `slot ${slot} waits for pages`);
      if (seen.has(slot)) throw simFailure("bad_argument", `slot ${slot} is planned twice`);
      seen.add(slot);
      total += rows;
      if (
        sequence.finish === FINISH.none &&
        (rows < 1 ||
          rows >
            computableRows(
              sequence,
              this.#queue.map((step) => step.plan),
            ))
      ) {
        throw simFailure("bad_argument", `slot ${slot} has not ${rows} rows to compute`);
      }
    }
    if (seen.size === 0 || total > this.info.maxStepTokens)
      throw simFailure("bad_argument", `${total} rows in one step`);
    const step = { number: this.#counters.steps + this.#queue.length, plan: plan.slice() };
    this.#queue.push(step);
    if (this.#queue.length === 1) this.#start();
    return step.number;
  }

  stats(): EngineStats {
    const sequences = this.#slots.filter((sequence) => sequence !== null).length;
    const pagesSent = this.#sender.pages;
    return {
      ...this.#counters,
      blocks: this.#pool.counts(),
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

  checkInvariants(): string | null {
    return this.#pool.broken(this.#slots.flatMap((sequence) => sequence?.lease.blocks ?? []));
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#stepTimer?.cancel();
    this.#eventTimer?.cancel();
    for (const sequence of this.#slots) {
      sequence?.lapse?.cancel();
      sequence?.exporting?.deadline.cancel();
    }
    if (this.info.kvPort !== 0) this.#model.fabric.leave(this.#options.kvHost, this.info.kvPort);
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

  #start(): void {
    const step = this.#queue[0];
    if (step === undefined) return;
    let rows = 0;
    for (let at = 2; at < step.plan.length; at += PLAN_ENTRY_WIDTH) rows += step.plan[at]!;
    const ms = this.#model.stepMs + rows * this.#model.rowMs;
    this.#stepTimer = this.#model.clock.after(ms, () => this.#finishStep(step, ms));
  }

  #finishStep(step: Step, computeMs: number): void {
    const count = step.plan.length / PLAN_ENTRY_WIDTH;
    const entries = new Int32Array(count * STEP_ENTRY_WIDTH);
    const logprobs: StepLogprobs[] = [];
    for (let i = 0; i < count; i++) {
      const [slot, generation, rows] = step.plan.subarray(i * PLAN_ENTRY_WIDTH) as unknown as [number, number, number];
      const sequence = this.#find({ slot, generation });
      if (sequence === null || sequence.finish !== FINISH.none) {
        entries.set([slot, generation, 0, -1, FINISH.skipped, 0], i * STEP_ENTRY_WIDTH);
        continue;
      }
      const token = this.#compute(sequence, rows, logprobs);
      entries.set([slot, generation, rows, token, sequence.finish, sequence.length], i * STEP_ENTRY_WIDTH);
    }
    this.#queue.shift();
    this.#counters.steps++;
    this.#counters.computeMs += computeMs;
    this.#start();
    for (const sequence of this.#slots) if (sequence !== null) this.#release(sequence);
    this.#emitCacheChanges();
    this.#deliver();
    this.#listener.onStep({
      step: step.number,
      entries,
      logprobs,
      startMs: this.#model.clock.now() - computeMs,
      computeMs,
    });
  }

  /** Computes rows; returns the token produced, or -1. */
  #compute(sequence: SimSequence, rows: number, logprobs: StepLogprobs[]): number {
    const { generation } = sequence.spec;
    const from = sequence.length;
    const given = generation.tokens.length;
    sequence.length += rows;
    const prompt = Math.min(sequence.length, given) - Math.min(from, given);
    this.#counters.prefillTokens += prompt;
    this.#counters.decodeTokens += rows - prompt;
    for (let index = Math.floor(from / BLOCK_TOKENS); index * BLOCK_TOKENS < sequence.length; index++) {
      const id = sequence.lease.blocks[index]!;
      this.#pool.set(id, "filling");
      if ((index + 1) * BLOCK_TOKENS <= sequence.length) {
        this.#pool.set(id, "sealed");
        this.#pool.set(id, this.#inUse);
      }
    }
    this.#publish(sequence, from);
    this.#sender.written(sequence);
    if (sequence.length < sequence.tokens.length) return -1;

    const { token, finish } = nextSimToken(this.#model, sequence.tokens, generation);
    sequence.finish = finish;
    if (token < 0) return token;
    sequence.tokens.push(token);
    const { topLogprobs } = generation.sampling;
    if (topLogprobs >= 0) logprobs.push(simLogprobs(sequence.handle.slot, token, topLogprobs, this.info.vocabSize));
    return token;
  }

  #publish(sequence: SimSequence, from: number): void {
    const full = Math.floor(sequence.length / BLOCK_TOKENS);
    const first = Math.floor(from / BLOCK_TOKENS);
    if (full <= first) return;
    const hashes = blockHashes(this.info.modelHash, Int32Array.from(sequence.tokens), full * BLOCK_TOKENS);
    for (let index = first; index < full; index++) this.#pool.publish(sequence.lease.blocks[index]!, hashes[index]!);
  }

  #end(sequence: SimSequence, keep: boolean): void {
    sequence.closing = { keep };
    this.#generations[sequence.handle.slot]!++;
    sequence.lapse?.cancel();
    // What was not computed will never be: the peer need not wait for the deadline to hear so.
    if (sequence.length < sequence.spec.generation.tokens.length) this.#sender.end(sequence, "closed");
    this.#release(sequence);
    this.#emitCacheChanges();
  }

  #release(sequence: SimSequence): void {
    if (sequence.closing === null || this.#slots[sequence.handle.slot] !== sequence) return;
    const running = this.#queue.slice(0, 1).some((step) => plannedRows(step.plan, sequence.handle) > 0);
    if (running || sequence.exporting !== null) return;
    this.#pool.release(sequence.lease, sequence.closing.keep);
    this.#slots[sequence.handle.slot] = null;
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
