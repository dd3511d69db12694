import { BLOCK_TOKENS } from "#protocol/kv.ts";
import type { Rank } from "../fleet/fleet.ts";
import type { CapacitySignals } from "./capacity-plan.ts";
import type { Demand } from "./planner.ts";
import type { StepTimes } from "./step-times.ts";
import type { TrafficMeans } from "./traffic-meter.ts";

/** What the plan of a model is made from, as far as it is known. */
export interface Observed {
  readonly nowMs: number;
  readonly demand: Demand;
  /** null: not known, or not lately. */
  readonly traffic: TrafficMeans | null;
  readonly prefill: { readonly ranks: readonly Rank[]; readonly steps: StepTimes; readonly ranksPerWorker: number };
  readonly decode: { readonly ranks: readonly Rank[]; readonly steps: StepTimes; readonly ranksPerWorker: number };
  /** 0: none. */
  readonly tpotGoalMs: number;
  readonly coldStartMs: number;
}

/** A request whose length is not known yet is taken to generate this. */
const UNKNOWN_OUTPUT = 256;

/** In the planner's terms: a group is a worker, all its ranks together. */
export function capacitySignals(observed: Observed): CapacitySignals {
  const { nowMs, demand, traffic, prefill, decode, coldStartMs } = observed;
  const rowMs = prefill.steps.promptRowMs;
  const tokenSeconds = rowMs === null ? null : rowMs / prefill.ranksPerWorker / 1000;
  const computed = traffic === null ? 1 : 1 - traffic.cachedShare;
  const pending = prefill.ranks.reduce((sum, { load }) => sum + load.pendingPrefillTokens, 0);
  const waitsForPrefill = demand.missing === "decode" ? 0 : demand.waitingTokens * computed;
  const perGroup = streamsPerGroup(observed);
  const perRank = perGroup === null ? null : perGroup / decode.ranksPerWorker;
  const tokenMs = perRank === null ? null : decode.steps.tokenMs(perRank);
  const decoding = decode.ranks.reduce((sum, { load }) => sum + load.requests, 0);
  return {
    nowMs,
    arrivals: traffic === null ? null : { short: traffic.short, long: traffic.long },
    prefillSeconds: traffic === null || tokenSeconds === null ? null : traffic.promptTokens * computed * tokenSeconds,
    prefillVariation: traffic?.promptVariation ?? 1,
    queuedSeconds: tokenSeconds === null ? 0 : (waitsForPrefill + pending) * tokenSeconds,
    oldestWaitMs: demand.oldestWaitMs,
    late: traffic?.late ?? null,
    streams: decoding + (demand.missing === "decode" ? demand.waiting : 0),
    streamSeconds:
      traffic === null || tokenMs === null ? null : ((traffic.outputTokens ?? UNKNOWN_OUTPUT) * tokenMs) / 1000,
    streamsPerGroup: perGroup,
    coldStartMs,
  };
}

/** Most streams of the usual length that a decode worker holds: by slots, by pages, and by the goal for the time per token. */
function streamsPerGroup({ traffic, decode, tpotGoalMs }: Observed): number | null {
  const [rank] = decode.ranks;
  if (rank === undefined || traffic === null) return null;
  const { maxRequests, blocksTotal } = rank.load;
  const context = traffic.promptTokens + (traffic.outputTokens ?? UNKNOWN_OUTPUT) / 2;
  const blocks = Math.ceil(context / BLOCK_TOKENS) + 1;
  let streams = Math.max(1, Math.min(maxRequests, Math.floor(blocksTotal / blocks)));
  if (tpotGoalMs > 0) {
    if (decode.steps.tokenMs(streams) === null) return null;
    while (streams > 1 && decode.steps.tokenMs(streams)! > tpotGoalMs) streams--;
  }
  return streams * decode.ranksPerWorker;
}
