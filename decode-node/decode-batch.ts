import {
  createStepLoop,
  type Engine,
  FINISH,
  refusalCode,
  rowsOf,
  type StepEntry,
  type StepLoop,
  type StepPlan,
  type StepResult,
  sameHandle,
  stepEntries,
} from "#native";
import type { SequenceHandle } from "#protocol/kv.ts";
import type { Generation } from "#protocol/request.ts";
import { NO_RANK_WORK, type Work } from "#protocol/worker.ts";
import { planDecode } from "./decode-batcher.ts";
import { blocksFor, roomAhead } from "./growth.ts";
import { FEWEST_STEPS, StepPace } from "./step-pace.ts";
import { afterStep, NO_WORK, type WorkDone } from "./work-done.ts";

export interface DecodeBatchParts {
  readonly engine: Engine;
  /** A sequence gave its blocks back for another one. */
  readonly onPreempted: () => void;
  /** A step's tokens were all told; `rows` were computed. */
  readonly onStepped: (rows: number, ms: number) => void;
  /** The step loop cannot go on. */
  readonly fail: (error: unknown) => void;
}

/** Whom a sequence belongs to. */
export interface SequenceOwner {
  onTokens(entry: Pick<StepEntry, "tokens" | "logprobs">): void;
  /** It ended by itself: a `FINISH` code. Its tokens were told. The owner ends it. */
  onFinish(finish: number): void;
}

/** A sequence that decodes here. */
export interface DecodeSequence {
  readonly generation: Generation;
  readonly owner: SequenceOwner;
  readonly arrival: number;
  /** Known tokens: given, then generated. */
  readonly tokens: number[];
  /** Most tokens it can come to. */
  readonly limit: number;
  /** Its place in the engine; of a preempted one, where it was. */
  handle: SequenceHandle;
  phase: "decoding" | "preempted" | "ended";
  /** KV rows after all settled steps. */
  length: number;
  promptLeft: number;
  capacity: number;
  running: boolean;
  /** What its next token may be; "awaited": it sits out until that is known. Null: anything, always. */
  mask: Uint32Array | "awaited" | null;
  /** Prompt rows computed again after a preemption count as well. */
  work: WorkDone;
}

/** The mask that says: another is still to come. */
const AWAITED = new Uint32Array();

/**
 * Owns the sequences that decode on this rank, and what the engine does next.
 *
 *   begun -> decoding -> ended
 *              ^   |
 *              |   v  blocks run out
 *            preempted
 *
 * 1 a sequence keeps blocks for what it has and a round ahead, no more
 * 2 the most entitled (higher priority, then older) is never preempted: it always finishes
 * 3 a preempted sequence goes on where it was: its full blocks stay cached, the rest is computed again, no token is told
 *   twice
 * 4 nobody is to be admitted while somebody is preempted (`pressed`)
 */
export class DecodeBatch {
  readonly pace = new StepPace();
  readonly #parts: DecodeBatchParts;
  readonly #loop: StepLoop;
  /** In order of entitlement. */
  #sequences: DecodeSequence[] = [];
  #preempted: DecodeSequence[] = [];
  #arrivals = 0;
  /** Everything that was computed here. */
  #done = NO_RANK_WORK;
  /** Closed sequences whose blocks the running step still has. */
  #releasing = 0;

  constructor(parts: DecodeBatchParts) {
    const { engine, fail } = parts;
    this.#parts = parts;
    this.#loop = createStepLoop({
      engine,
      plan: (inFlight) => this.#plan(inFlight),
      onResult: (result, plan) => this.#obey(result, plan),
      onFault: fail,
    });
  }

  get size(): number {
    return this.#sequences.length + this.#preempted.length;
  }

  get pressed(): boolean {
    return this.#preempted.length > 0;
  }

  get done(): Work {
    return this.#done;
  }

  get promptTokensLeft(): number {
    return this.#sequences.reduce((sum, { promptLeft }) => sum + promptLeft, 0);
  }

  /** Fewest tokens that any sequence may still generate. */
  get tokensLeft(): number {
    return Math.min(...this.#sequences.map(({ limit, tokens }) => limit - tokens.length));
  }

  /** Tokens to keep blocks for when a sequence with so many known tokens is opened. */
  opening(tokens: number): number {
    return tokens + roomAhead(this.#steps, this.#drafts);
  }

  /**
   * Takes over an attached sequence of which the first `length` tokens need no computing. `tokens` are all known ones;
   * `capacity` is what it was opened with. One with a constraint waits for a mask (`allow`) before each token.
   */
  begin(
    generation: Generation,
    owner: SequenceOwner,
    at: {
      readonly handle: SequenceHandle;
      readonly tokens: number[];
      readonly length: number;
      readonly capacity: number;
    },
  ): DecodeSequence {
    const { contextLength } = this.#parts.engine.info;
    const limit = Math.min(generation.promptLength + generation.maxNewTokens, contextLength);
    const sequence: DecodeSequence = {
      ...at,
      generation,
      owner,
      arrival: this.#arrivals++,
      limit,
      capacity: Math.min(at.capacity, limit),
      phase: "decoding",
      promptLeft: Math.max(0, generation.tokens.length - at.length),
      running: false,
      mask: generation.constraint === null ? null : "awaited",
      work: NO_WORK,
    };
    this.#applyMask(sequence);
    this.#insert(sequence);
    this.#loop.wake();
    return sequence;
  }

  /** What the next token of a sequence with a constraint may be, a bit per token of the vocabulary. */
  allow(sequence: DecodeSequence, mask: Uint32Array): void {
    sequence.mask = mask;
    if (sequence.phase === "decoding") this.#applyMask(sequence);
  }

  /** Ends a sequence. Resolves when the engine has let go of it. */
  end(sequence: DecodeSequence, keep: boolean): Promise<void> {
    const { phase } = sequence;
    sequence.phase = "ended";
    this.#preempted = this.#preempted.filter((other) => other !== sequence);
    this.#sequences = this.#sequences.filter((other) => other !== sequence);
    return phase === "decoding" ? this.close(sequence.handle, keep) : Promise.resolve();
  }

  /** Closes a sequence of the engine, whether it decodes or not. Resolves when the engine has let go of it. */
  async close(handle: SequenceHandle, keep: boolean): Promise<void> {
    this.#releasing++;
    try {
      await this.#loop.close(handle, keep);
    } catch (error) {
      // A reservation that lapsed is closed already, perhaps before its event arrived here.
      if (refusalCode(error) !== "unknown_request") this.#parts.fail(error);
    }
    this.#releasing--;
    this.#loop.wake();
  }

  onStep(result: StepResult): void {
    this.#loop.settle(result);
  }

  /** Plans nothing more. */
  stop(): void {
    this.#loop.stop();
  }

  /** Tokens drafted per step. */
  get #drafts(): number {
    return this.#parts.engine.info.speculation;
  }

  get #steps(): number {
    return this.pace.stepsPerRound(this.#sequences.length);
  }

  #plan(inFlight: readonly StepPlan[]): StepPlan {
    this.#reopen();
    const { maxStepTokens: budget } = this.#parts.engine.info;
    const { plan, preempt } = planDecode(this.#sequences, inFlight, {
      budget,
      chunk: this.pace.chunkRows(this.#sequences.filter(({ running }) => running).length, budget),
      steps: this.#steps,
      drafts: this.#drafts,
      blocksAvailable: () => this.#blocksAvailable(),
    });
    if (preempt !== null && this.#releasing === 0) {
      const victim = this.#sequences.find(({ handle }) => sameHandle(handle, preempt));
      if (victim !== undefined) this.#preempt(victim);
      return plan.filter(({ handle }) => !sameHandle(handle, preempt));
    }
    return plan;
  }

  #preempt(sequence: DecodeSequence): void {
    this.#parts.onPreempted();
    sequence.phase = "preempted";
    sequence.running = false;
    this.#sequences = this.#sequences.filter((other) => other !== sequence);
    this.#preempted.push(sequence);
    this.#preempted.sort(byEntitlement);
    void this.close(sequence.handle, true);
  }

  /** Gives the first of the preempted its place back once there are blocks for it and one for everybody who runs. */
  #reopen(): void {
    const sequence = this.#preempted[0];
    if (sequence === undefined || this.#releasing > 0) return;
    const { engine } = this.#parts;
    const reserve = Math.min(sequence.limit, sequence.tokens.length + roomAhead(FEWEST_STEPS, this.#drafts));
    if (this.#blocksAvailable() < blocksFor(reserve) + this.#sequences.length) return;
    const generation = { ...sequence.generation, tokens: Int32Array.from(sequence.tokens) };
    try {
      const { handle, cachedTokens } = engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve });
      const promptLeft = sequence.tokens.length - cachedTokens;
      Object.assign(sequence, { handle, length: cachedTokens, promptLeft, capacity: reserve, phase: "decoding" });
      this.#applyMask(sequence);
    } catch (error) {
      // A slot may be free a step later; anything else is no state to go on from.
      if (refusalCode(error) !== "busy") this.#parts.fail(error);
      return;
    }
    this.#preempted.shift();
    this.#insert(sequence);
  }

  #applyMask({ handle, mask }: DecodeSequence): void {
    if (mask !== null) this.#parts.engine.setMask(handle, mask === "awaited" ? AWAITED : mask);
  }

  #insert(sequence: DecodeSequence): void {
    this.#sequences.push(sequence);
    this.#sequences.sort(byEntitlement);
  }

  #blocksAvailable(): number {
    const { blocks } = this.#parts.engine.stats();
    return blocks.free + blocks.cached;
  }

  /** Tokens go to their owners before anything is ended. */
  #obey(result: StepResult, plan: StepPlan): void {
    const bySlot = new Map(this.#sequences.map((sequence) => [sequence.handle.slot, sequence]));
    const find = (handle: SequenceHandle) => {
      const sequence = bySlot.get(handle.slot);
      return sequence !== undefined && sameHandle(sequence.handle, handle) ? sequence : null;
    };
    for (const { handle, reserve } of plan) {
      const sequence = find(handle);
      if (sequence === null || reserve === 0) continue;
      sequence.running = true;
      sequence.capacity = Math.max(sequence.capacity, reserve);
    }
    const ended: [DecodeSequence, number][] = [];
    let decoding = 0;
    let promptRows = 0;
    let gained = 0;
    const entries = stepEntries(result);
    const rowMs = result.computeMs / Math.max(1, rowsOf(entries));
    for (const entry of entries) {
      const sequence = find(entry);
      if (entry.finish === FINISH.skipped || sequence === null) continue;
      const ofPrompt = sequence.promptLeft > 0;
      sequence.work = afterStep(sequence.work, {
        ...{ prompt: ofPrompt, rows: entry.rows, tokens: entry.tokens.length },
        ms: entry.rows * rowMs,
      });
      if (ofPrompt) {
        promptRows += entry.rows;
        sequence.promptLeft -= entry.rows;
      } else decoding++;
      gained += entry.tokens.length;
      sequence.length = entry.length;
      for (const token of entry.tokens) sequence.tokens.push(token);
      if (entry.tokens.length > 0 && sequence.mask !== null) sequence.mask = "awaited";
      if (entry.tokens.length > 0) sequence.owner.onTokens(entry);
      if (entry.finish !== FINISH.none) ended.push([sequence, entry.finish]);
    }
    this.pace.observe(decoding, promptRows, result.computeMs);
    const { steps, busyMs, promptRows: rows, streamSteps, tokens } = this.#done;
    this.#done = {
      ...{ steps: steps + 1, busyMs: busyMs + result.computeMs, promptRows: rows + promptRows },
      ...{ streamSteps: streamSteps + decoding, tokens: tokens + gained },
    };
    for (const [sequence, finish] of ended) sequence.owner.onFinish(finish);
    this.#parts.onStepped(decoding + promptRows, result.computeMs);
  }
}

/** Higher priority first, then the older. */
function byEntitlement(a: DecodeSequence, b: DecodeSequence): number {
  return b.generation.priority - a.generation.priority || a.arrival - b.arrival;
}
