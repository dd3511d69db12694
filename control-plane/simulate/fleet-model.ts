import type { GpuShape, MoeShape } from "../planner/moe-shape.ts";
import { decodeStep, type Efficiency, kvBytesPerToken, kvTokensPerGpu, prefillSeconds } from "../planner/step-time.ts";

/** What a fleet is made of, and what is asked of it. */
export interface FleetSpec {
  readonly model: MoeShape;
  readonly gpu: GpuShape;
  readonly efficiency: Efficiency;
  /** GPUs of one prefill group and of one decode group. */
  readonly prefillGpus: number;
  readonly decodeGpus: number;
  /** Most groups of one role. */
  readonly mostGroups: number;
  readonly ttftGoalMs: number;
  readonly tpotGoalMs: number;
  /** From the wish for a group to its first request. */
  readonly coldStartMs: number;
}

/** Bytes per second from group to group, per GPU of the smaller one: 71 % of a 400 Gb/s card. */
const TRANSFER_RATE = 35e9;
const MOST_STREAMS_PER_GPU = 512;

/** How long things take on the groups of a fleet. */
export class FleetModel {
  readonly spec: FleetSpec;
  /** Most streams of a decode group within the TPOT goal, for a mean context. */
  readonly #most = new Map<number, number>();
  readonly #tokenMs = new Map<number, number>();

  constructor(spec: FleetSpec) {
    this.spec = spec;
    if (this.kvTokens === 0) {
      throw new Error(
        `${spec.model.name} does not fit ${spec.decodeGpus} ${spec.gpu.name}: more GPUs per group are needed`,
      );
    }
  }

  /** Tokens of context that a decode group holds. */
  get kvTokens(): number {
    const { model, gpu, decodeGpus } = this.spec;
    return kvTokensPerGpu(model, gpu, decodeGpus) * decodeGpus;
  }

  prefillMs(promptTokens: number, cachedTokens: number): number {
    const { prefillGpus, efficiency } = this.spec;
    return (1000 * prefillSeconds(this.spec, efficiency, promptTokens - cachedTokens, cachedTokens)) / prefillGpus;
  }

  transferMs(tokens: number): number {
    const { model, prefillGpus, decodeGpus } = this.spec;
    return (1000 * tokens * kvBytesPerToken(model)) / (TRANSFER_RATE * Math.min(prefillGpus, decodeGpus));
  }

  /** Milliseconds per token of a decode group that holds so many streams of so much context in all. */
  tokenMs(streams: number, contextTokens: number): number {
    if (streams === 0) return 0;
    // Rounded, so that it need not be computed for every stream that comes or goes.
    const context = Math.max(256, 256 * Math.round(contextTokens / streams / 256));
    const key = streams * 4_096 + context / 256;
    let ms = this.#tokenMs.get(key);
    if (ms === undefined) {
      const { model, gpu, decodeGpus: width, efficiency } = this.spec;
      const { tpotMs } = decodeStep({ model, gpu, width, requestsPerGpu: streams / width, context });
      ms = tpotMs / efficiency.decode;
      this.#tokenMs.set(key, ms);
    }
    return ms;
  }

  /** Most streams of a mean context that a decode group may hold. */
  mostStreams(context: number): number {
    const rounded = 256 * Math.max(1, Math.ceil(context / 256));
    let most = this.#most.get(rounded);
    if (most === undefined) {
      const { decodeGpus, tpotGoalMs } = this.spec;
      let [low, high] = [
        1,
        Math.max(1, Math.min(MOST_STREAMS_PER_GPU * decodeGpus, Math.floor(this.kvTokens / rounded))),
      ];
      while (low < high) {
        const middle = Math.ceil((low + high) / 2);
        if (this.tokenMs(middle, middle * rounded) <= tpotGoalMs) low = middle;
        else high = middle - 1;
      }
      most = low;
      this.#most.set(rounded, most);
    }
    return most;
  }
}
