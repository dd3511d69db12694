import type { SequenceHandle } from "#protocol/kv.ts";
import {
  type Engine,
  FINISH,
  openEngine,
  packPlan,
  type StepResult,
  stepEntries,
} from "../../native/binding/native.ts";
import { generationOf } from "../support/generation.ts";
import { type EngineSettings, nanoEngine } from "./engine-alone.ts";

/** Decode steps of some streams together, from the first one that all were in to the last one before a stream ended. */
export interface Decoding {
  readonly steps: number;
  /** What the engine computed, and all the time that passed. */
  readonly computeMs: number;
  readonly decodeMs: number;
  readonly tokens: number;
  readonly verified: number;
  readonly accepted: number;
}

export interface DecodingQuery {
  readonly prompts: readonly Int32Array[];
  readonly tokens: number;
  readonly temperature: number;
  /** A stream goes on to its last token although its text may be over. */
  readonly toTheEnd: boolean;
}

interface Stream {
  readonly handle: SequenceHandle;
  /** Rows of its prompt that are still to be computed, the last one not among them. */
  left: number;
}

/** An engine that answers given prompts: those and the place in the batch are planned, nothing else is. */
export class DraftEngine {
  engine!: Engine;
  #onStep: (result: StepResult) => void = () => {};

  static async open(settings: EngineSettings): Promise<DraftEngine> {
    const own = new DraftEngine();
    own.engine = await openEngine(nanoEngine("decode", settings), {
      onStep: (result) => own.#onStep(result),
      onEvents: () => {},
      onFatal: (message) => {
        throw new Error(message);
      },
    });
    own.engine.setEpoch(1);
    return own;
  }

  /** Computes the prompts one after the other, then lets all streams decode at once. */
  async decode({ prompts, tokens, temperature, toTheEnd }: DecodingQuery): Promise<Decoding> {
    const { engine } = this;
    const streams = prompts.map((prompt, i): Stream => {
      const sampling = { temperature, seed: prompt.length + i, minNewTokens: toTheEnd ? tokens : 0 };
      const generation = generationOf(prompt, { maxNewTokens: tokens, sampling });
      const reserve = prompt.length + tokens;
      const { handle, cachedTokens } = engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve });
      return { handle, left: prompt.length - cachedTokens - 1 };
    });
    for (const stream of streams) await this.#prompt(stream);
    const decoding = await this.#together(streams.map(({ handle }) => handle));
    for (const { handle } of streams) engine.closeSequence(handle, false);
    return decoding;
  }

  async #prompt(stream: Stream): Promise<void> {
    while (stream.left > 0) {
      const rows = Math.min(stream.left, this.engine.info.maxStepTokens);
      stream.left -= rows;
      await new Promise<void>((resolve) => {
        this.#onStep = () => resolve();
        this.engine.submit(packPlan([{ handle: stream.handle, rows, reserve: 0 }]));
      });
    }
  }

  #together(handles: readonly SequenceHandle[]): Promise<Decoding> {
    return new Promise((resolve) => {
      const sum = { steps: 0, computeMs: 0, tokens: 0, verified: 0, accepted: 0 };
      let [begunMs, running] = [0, handles.length];
      let decoding: Decoding | null = null;
      this.#onStep = (result) => {
        const entries = stepEntries(result).filter(({ finish }) => finish !== FINISH.skipped);
        const endMs = result.startMs + result.computeMs;
        // The first step is that of the prompts' last rows.
        if (begunMs === 0) begunMs = endMs;
        else if (decoding === null) {
          sum.steps++;
          sum.computeMs += result.computeMs;
          for (const { tokens, rows } of entries) {
            sum.tokens += tokens.length;
            sum.verified += rows - 1;
            sum.accepted += tokens.length - 1;
          }
        }
        const ended = entries.filter(({ finish }) => finish !== FINISH.none).length;
        if (ended > 0) decoding ??= { ...sum, decodeMs: endMs - begunMs };
        running -= ended;
        if (running === 0) resolve(decoding!);
      };
      const reserve = 2 ** 31 - 1;
      this.engine.submit(packPlan(handles.map((handle) => ({ handle, rows: 1, reserve }))));
    });
  }
}

/** One list of decodings as one decoding. */
export function sumOf(list: readonly Decoding[]): Decoding {
  const total = (pick: (one: Decoding) => number) => list.reduce((sum, one) => sum + pick(one), 0);
  return {
    steps: total((one) => one.steps),
    computeMs: total((one) => one.computeMs),
    decodeMs: total((one) => one.decodeMs),
    tokens: total((one) => one.tokens),
    verified: total((one) => one.verified),
    accepted: total((one) => one.accepted),
  };
}
