import type { GpuShape, MoeShape } from "./moe-shape.ts";
import { decodeStep, dollarsPerMillion, type Efficiency, kvTokensPerGpu, prefillSeconds } from "./step-time.ts";

/** What is asked of a fleet. */
export interface Traffic {
  readonly requestsPerSecond: number;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly outputTokens: number;
}

export interface PlanQuestion {
  readonly model: MoeShape;
  readonly gpu: GpuShape;
  readonly efficiency: Efficiency;
  readonly traffic: Traffic;
  readonly tpotGoalMs: number;
  readonly ttftGoalMs: number;
  /** GPUs there are. */
  readonly gpus: number;
}

/** One way to divide the GPUs. */
export interface FleetPlan {
  /** GPUs that share the experts when decoding. */
  readonly width: number;
  readonly prefillGpus: number;
  readonly decodeGpus: number;
  readonly requestsPerGpu: number;
  readonly tpotMs: number;
  /** Of a mean prompt on one prefill group. */
  readonly prefillMs: number;
  /** Requests per second that it carries. */
  readonly requestsPerSecond: number;
  readonly dollarsPerMillionOutput: number;
}

const WIDTHS = [8, 16, 32, 64, 128, 256] as const;
/** Prefill groups are as narrow as memory lets them be; a queue before them needs room. */
const PREFILL_LOAD = 0.8;
/** Streams come and go: a decode group is seldom full. */
const DECODE_LOAD = 0.85;
const MOST_REQUESTS = 512;

/** All ways that keep the goals, the one that carries most first. Empty: none does. */
export function planFleet(question: PlanQuestion): readonly FleetPlan[] {
  const { model, gpu, gpus } = question;
  const narrowest = WIDTHS.find((width) => kvTokensPerGpu(model, gpu, width) > 0);
  if (narrowest === undefined) return [];
  return WIDTHS.filter((width) => width >= narrowest && width + narrowest <= gpus)
    .flatMap((width) => planFor(question, width, narrowest) ?? [])
    .sort((a, b) => b.requestsPerSecond - a.requestsPerSecond);
}

function planFor(question: PlanQuestion, width: number, prefillGroup: number): FleetPlan | null {
  const { gpu, efficiency, traffic, gpus, ttftGoalMs } = question;
  const { promptTokens, cachedTokens, outputTokens } = traffic;
  const seconds = prefillSeconds(question, efficiency, promptTokens - cachedTokens, cachedTokens);
  const prefillMs = (1000 * seconds) / prefillGroup;
  const full = fullest(question, width);
  if (full === null || prefillMs > ttftGoalMs) return null;
  const prefillCost = seconds / PREFILL_LOAD;
  const decodeCost = (outputTokens * full.tpotMs) / 1000 / full.requestsPerGpu / DECODE_LOAD;
  let best: FleetPlan | null = null;
  for (let decodeGpus = width; decodeGpus + prefillGroup <= gpus; decodeGpus += width) {
    const prefillGpus = Math.floor((gpus - decodeGpus) / prefillGroup) * prefillGroup;
    const requestsPerSecond = Math.min(prefillGpus / prefillCost, decodeGpus / decodeCost);
    if (best !== null && requestsPerSecond <= best.requestsPerSecond) continue;
    const dollarsPerSecond = ((prefillGpus + decodeGpus) * gpu.dollarsPerHour) / 3600;
    best = {
      ...{ width, prefillGpus, decodeGpus, prefillMs, requestsPerSecond, ...full },
      dollarsPerMillionOutput: (dollarsPerSecond / (requestsPerSecond * outputTokens)) * 1e6,
    };
  }
  return best;
}

/** Most requests per GPU within memory and the goal. */
function fullest(
  { model, gpu, efficiency, traffic, tpotGoalMs }: PlanQuestion,
  width: number,
): { readonly requestsPerGpu: number; readonly tpotMs: number } | null {
  const context = Math.ceil(traffic.promptTokens + traffic.outputTokens / 2);
  const fits = Math.floor(kvTokensPerGpu(model, gpu, width) / (traffic.promptTokens + traffic.outputTokens));
  let found: { readonly requestsPerGpu: number; readonly tpotMs: number } | null = null;
  for (let requestsPerGpu = 1; requestsPerGpu <= Math.min(MOST_REQUESTS, fits); requestsPerGpu++) {
    const tpotMs = decodeStep({ model, gpu, width, requestsPerGpu, context }).tpotMs / efficiency.decode;
    if (tpotMs > tpotGoalMs) break;
    found = { requestsPerGpu, tpotMs };
  }
  return found;
}

/** Table 7 as the theory gives it: TPOT in ms, dollars per million output tokens. */
export function tableSeven(model: MoeShape, gpu: GpuShape): { readonly tpotMs: number; readonly dollars: number } {
  const { tpotMs } = decodeStep({ model, gpu, width: 128, requestsPerGpu: 96, context: 5_000 });
  return { tpotMs, dollars: dollarsPerMillion(gpu, 96, tpotMs) };
}
