import { DecodeBatch } from "../../decode-node/decode-batch.ts";
import { type Engine, type EngineOptions, openEngine } from "../../native/binding/native.ts";
import { NANO } from "../support/dialogues.ts";
import { generationOf } from "../support/generation.ts";

export interface EngineSettings {
  readonly backend: "ref" | "cpu";
  readonly threads: number;
  readonly packedFolder: string;
  /** Drafts per step. */
  readonly speculation?: number;
}

/** How the bundled model is opened here, whatever is asked of it. */
export function nanoEngine(role: "prefill" | "decode", settings: EngineSettings): EngineOptions {
  return {
    speculation: 1,
    ...settings,
    modelFolder: NANO,
    latentNormEps: 1e-6,
    weightFormat: "checkpoint",
    deterministic: false,
    slots: 64,
    kvBlocks: 0,
    kvBytes: 256 * 1024 * 1024,
    kvTierBytes: 0,
    kvTierFolder: null,
    maxStepTokens: 256,
    role,
    rankId: `${role}-alone`,
    kvHost: "127.0.0.1",
    kvPort: 0,
    kvTransport: "auto",
    kvTls: null,
  };
}

/** The native engine in this process with nothing around it but the batch that the nodes use as well. */
export class EngineAlone implements AsyncDisposable {
  readonly engine: Engine;
  readonly #batch: DecodeBatch;
  #onFault: (error: unknown) => void = () => {};

  private constructor(engine: Engine) {
    this.engine = engine;
    this.#batch = new DecodeBatch({
      engine,
      onPreempted: () => {},
      onStepped: () => {},
      fail: (error) => this.#onFault(error),
    });
  }

  static async open(role: "prefill" | "decode", settings: EngineSettings): Promise<EngineAlone> {
    let alone: EngineAlone | null = null;
    const engine = await openEngine(nanoEngine(role, settings), {
      onStep: (result) => alone!.#batch.onStep(result),
      onEvents: () => {},
      onFatal: (message) => alone!.#onFault(new Error(message)),
    });
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
        const capacity = this.#batch.opening(prompt.length);
        const opened = this.engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: capacity });
        const sequence = this.#batch.begin(
          generation,
          {
            onTokens: (entry) => {
              firstMs[index] ??= performance.now() - startMs;
              first[index] ??= entry.tokens[0]!;
            },
            onFinish: () => {
              void this.#batch.end(sequence, true);
              if (--left === 0) resolve({ firstMs, endMs: performance.now() - startMs, first });
            },
          },
          { handle: opened.handle, tokens: Array.from(prompt), length: opened.cachedTokens, capacity },
        );
      }
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#batch.stop();
    await this.engine.close();
  }
}
