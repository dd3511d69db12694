import type { SequenceHandle } from "#protocol/kv.ts";
import { planDecode } from "../../decode-node/decode-batcher.ts";
import {
  createStepLoop,
  type Engine,
  FINISH,
  openEngine,
  type StepLoop,
  type StepPlan,
  type StepResult,
  sameHandle,
  stepEntries,
} from "../../native/binding/native.ts";
import { NANO } from "../support/dialogues.ts";
import { generationOf, WHOLE } from "../support/generation.ts";

export interface EngineSettings {
  readonly backend: "ref" | "cpu";
  readonly threads: number;
  readonly packedFolder: string;
}

interface Running {
  readonly handle: SequenceHandle;
  promptLeft: number;
  running: boolean;
  readonly reserve: number;
  readonly onToken: (token: number) => void;
}

/** The native engine in this process with nothing around it but the step loop that the nodes use as well. */
export class EngineAlone implements AsyncDisposable {
  readonly engine: Engine;
  readonly #running = new Map<number, Running>();
  readonly #loop: StepLoop;
  #onFault: (error: unknown) => void = () => {};

  private constructor(engine: Engine) {
    this.engine = engine;
    const budget = engine.info.maxStepTokens;
    this.#loop = createStepLoop({
      engine,
      plan: (inFlight) => planDecode([...this.#running.values()], inFlight, budget),
      onResult: (result, plan) => this.#take(result, plan),
      onFault: (error) => this.#onFault(error),
    });
  }

  static async open(role: "prefill" | "decode", settings: EngineSettings): Promise<EngineAlone> {
    let alone: EngineAlone | null = null;
    const engine = await openEngine(
      {
        ...settings,
        modelFolder: NANO,
        latentNormEps: 1e-6,
        deterministic: false,
        speculation: 1,
        slots: 64,
        kvBlocks: 0,
        kvBytes: 256 * 1024 * 1024,
        maxStepTokens: 256,
        role,
        rankId: `${role}-alone`,
        kvHost: "127.0.0.1",
        kvPort: 0,
        kvTransport: "auto",
      },
      {
        onStep: (result) => alone!.#loop.settle(result),
        onEvents: () => {},
        onFatal: (message) => alone!.#onFault(new Error(message)),
      },
    );
    alone = new EngineAlone(engine);
    engine.setEpoch(1);
    return alone;
  }

  /** Generates `tokens` tokens for each prompt, all together. Returns when each had its first one and when all ended. */
  generate(
    prompts: readonly Int32Array[],
    tokens: number,
  ): Promise<{ firstMs: number[]; endMs: number; first: number[] }> {
    return new Promise((resolve, reject) => {
      this.#onFault = reject;
      const startMs = performance.now();
      const firstMs: number[] = [];
      const first: number[] = [];
      let left = prompts.length;
      for (const [index, prompt] of prompts.entries()) {
        const generation = generationOf(prompt, { maxNewTokens: tokens, sampling: { minNewTokens: tokens } });
        const { handle, cachedTokens } = this.engine.openSequence({
          generation,
          mode: "compute",
          deadlineMs: 0,
          reserve: WHOLE,
        });
        this.#running.set(handle.slot, {
          handle,
          promptLeft: prompt.length - cachedTokens,
          running: false,
          reserve: prompt.length + tokens,
          onToken: (token) => {
            firstMs[index] ??= performance.now() - startMs;
            first[index] ??= token;
            if (this.#running.has(handle.slot) || --left > 0) return;
            resolve({ firstMs, endMs: performance.now() - startMs, first });
          },
        });
      }
      this.#loop.wake();
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#loop.stop();
    await this.engine.close();
  }

  #take(result: StepResult, plan: StepPlan): void {
    for (const { handle, reserve } of plan) {
      const sequence = this.#running.get(handle.slot);
      if (reserve > 0 && sequence !== undefined && sameHandle(sequence.handle, handle)) sequence.running = true;
    }
    for (const { slot, generation, rows, tokens, finish } of stepEntries(result)) {
      const sequence = this.#running.get(slot);
      if (sequence?.handle.generation !== generation || finish === FINISH.skipped) continue;
      sequence.promptLeft -= Math.min(sequence.promptLeft, rows);
      if (finish !== FINISH.none) {
        this.#running.delete(slot);
        this.engine.closeSequence(sequence.handle, true);
      }
      for (const token of tokens) sequence.onToken(token);
    }
  }
}
