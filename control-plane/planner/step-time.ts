import type { GpuShape, MoeShape } from "./moe-shape.ts";

/**
 * The theoretical model of the LongCat-Flash report (Table 7): what a decoding step costs on a GPU of a group that shares the
 * experts. It knows nothing of launch overheads and stragglers; `Efficiency` says how much of it is reached.
 */
export interface DecodePoint {
  readonly model: MoeShape;
  readonly gpu: GpuShape;
  /** GPUs that share the experts. */
  readonly width: number;
  readonly requestsPerGpu: number;
  /** Tokens that a request attends to, on the average. */
  readonly context: number;
}

export interface DecodeStep {
  /** One layer's parts, microseconds. */
  readonly attentionUs: number;
  readonly dispatchUs: number;
  readonly expertsUs: number;
  readonly combineUs: number;
  readonly layerUs: number;
  /** Milliseconds per output token of a request, as theory has it. */
  readonly tpotMs: number;
}

/** One draft per step, accepted four times in five: rows of a step per request, and tokens it gains. */
export const ROWS_PER_REQUEST = 2;
export const TOKENS_PER_STEP = 1.8;

/** Projections and the rest of an attention, microseconds at 192 rows: latent, grouped. */
const LATENT_REST_US = 60;
const GROUPED_REST_US = 21;
const TABLE_ROWS = 192;
const LATENT_NUMBERS = 576;
const LATENT_VALUES = 512;

/**
 * Bytes per second and GPU of the expert exchange by group width: DeepEP's low-latency figures on H800 (128 tokens, hidden
 * 7168, 8 experts: 77, 118, 155, 173 us for 8, 16, 32, 64 GPUs), and the table's own 40 GB/s at 128.
 */
const EXCHANGE: readonly (readonly [width: number, rate: number])[] = [
  [1, Number.POSITIVE_INFINITY],
  [8, 95e9],
  [16, 62e9],
  [32, 47e9],
  [64, 42e9],
  [128, 40e9],
  [256, 38e9],
];

export function decodeStep({ model, gpu, width, requestsPerGpu, context }: DecodePoint): DecodeStep {
  const rows = requestsPerGpu * ROWS_PER_REQUEST;
  const dispatchUs = (rows * model.sent * model.hidden * 1e6) / exchangeRate(width);
  // fp8 there, bf16 back.
  const combineUs = 2 * dispatchUs;
  const expertBytes = 3 * model.hidden * model.expertWidth;
  const computeUs = (rows * model.computed * expertBytes * 2 * 1e6) / gpu.peak;
  // Every expert that is here is read, as some row needs it.
  const readUs = (Math.max(1, model.experts / width) * expertBytes * 1e6) / gpu.memoryRate;
  const expertsUs = Math.max(computeUs, readUs);
  const attentionUs = attention(model, gpu, rows, requestsPerGpu, context);
  const hidden = model.overlap === "two-batch";
  const layerUs = dispatchUs + expertsUs + combineUs + (hidden ? 0 : attentionUs);
  const tpotMs = (Math.max(layerUs, attentionUs) * model.layers) / TOKENS_PER_STEP / 1000;
  return { attentionUs, dispatchUs, expertsUs, combineUs, layerUs, tpotMs };
}

function attention(model: MoeShape, gpu: GpuShape, rows: number, requests: number, context: number): number {
  const rest = Math.max(1 / 4, rows / TABLE_ROWS);
  if (model.kv !== "latent") {
    return (requests * context * model.kv * 1e6) / gpu.memoryRate + GROUPED_REST_US * rest;
  }
  const computeUs = (rows * model.heads * context * 2 * (LATENT_NUMBERS + LATENT_VALUES) * 1e6) / gpu.attentionRate;
  const readUs = (requests * context * LATENT_NUMBERS * 2 * 1e6) / gpu.memoryRate;
  return Math.max(computeUs, readUs) + LATENT_REST_US * rest;
}

/** Between the widths that were measured the rate follows the logarithm of the width. */
function exchangeRate(width: number): number {
  if (width <= 1) return Number.POSITIVE_INFINITY;
  const above = EXCHANGE.findIndex(([known]) => known >= width);
  if (above < 0) return EXCHANGE.at(-1)![1];
  const [high, highRate] = EXCHANGE[above]!;
  const [low, lowRate] = EXCHANGE[above - 1]!;
  if (high === width || !Number.isFinite(lowRate)) return highRate;
  const share = Math.log(width / low) / Math.log(high / low);
  return lowRate + (highRate - lowRate) * share;
}

/** Dollars for a million output tokens. */
export function dollarsPerMillion(gpu: GpuShape, requestsPerGpu: number, tpotMs: number): number {
  const tokensPerHour = (3600 * 1000 * requestsPerGpu) / tpotMs;
  return (gpu.dollarsPerHour / tokensPerHour) * 1e6;
}

/**
 * How much of the theory is reached. Decoding: 16 ms in theory and about 26 ms as its authors measured it. Prefill: 32,200
 * computed prompt tokens per second on eight H800 (DeepSeek's production figure without its cache hits), which is 15 % of
 * the fp8 peak.
 */
export interface Efficiency {
  readonly decode: number;
  readonly prefill: number;
}

export const MEASURED_EFFICIENCY: Efficiency = { decode: 0.615, prefill: 0.15 };

/** Seconds that one GPU's worth of prefill takes for `tokens` new tokens behind `cached` ones. */
export function prefillSeconds(
  { model, gpu }: Pick<DecodePoint, "model" | "gpu">,
  efficiency: Efficiency,
  tokens: number,
  cached: number,
): number {
  const dense = 2 * model.activeParameters * tokens;
  const pairs = tokens * (cached + tokens / 2);
  const perPair = 2 * model.heads * (192 + 128) * model.attentions * model.layers;
  return (dense + pairs * perPair) / (gpu.peak * efficiency.prefill);
}

/** Bytes of KV per token of context. */
export function kvBytesPerToken(model: MoeShape): number {
  const perAttention = model.kv === "latent" ? LATENT_NUMBERS * 2 : model.kv;
  return perAttention * model.attentions * model.layers;
}

/** Tokens of context that fit beside the weights of one GPU of a group; 0: not even the weights do. */
export function kvTokensPerGpu(model: MoeShape, gpu: GpuShape, width: number): number {
  const expertBytes = 3 * model.hidden * model.expertWidth * model.experts * model.layers;
  const dense = Math.max(0, model.parameters - expertBytes);
  const left = gpu.memoryBytes * 0.9 - expertBytes / width - dense;
  return Math.max(0, Math.floor(left / kvBytesPerToken(model)));
}
