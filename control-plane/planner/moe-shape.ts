/** A mixture-of-experts model as far as its costs go. Counts per layer unless they say otherwise; weights in fp8. */
export interface MoeShape {
  readonly name: string;
  readonly layers: number;
  readonly hidden: number;
  readonly heads: number;
  /** Attentions of one layer. */
  readonly attentions: number;
  /** `latent`: 576 numbers per token and attention, shared by all heads; a number: bytes per token of grouped keys and values. */
  readonly kv: "latent" | number;
  /** Inner width of an expert, routed experts, and how many compute for a token on the average, shared ones included. */
  readonly expertWidth: number;
  readonly experts: number;
  readonly computed: number;
  /** Of those the ones that tokens are sent to. */
  readonly sent: number;
  /** Parameters that compute for a token, and all there are. */
  readonly activeParameters: number;
  readonly parameters: number;
  /** Two batches hide each other's attention, or one batch's dense half hides nothing but is shorter. */
  readonly overlap: "two-batch" | "single-batch";
}

/** What one kind of GPU can do, and costs. */
export interface GpuShape {
  readonly name: string;
  readonly memoryBytes: number;
  /** Bytes per second out of its memory. */
  readonly memoryRate: number;
  /** Peak of fp8 products, and what latent attention reaches, FLOP per second. */
  readonly peak: number;
  readonly attentionRate: number;
  readonly dollarsPerHour: number;
}

const BLOCK = { attentions: 1 } as const;

/** The models of the report's Table 7. */
export const MODELS: readonly MoeShape[] = [
  {
    ...BLOCK,
    ...{ name: "deepseek-v3", layers: 61, hidden: 7168, heads: 128, kv: "latent" },
    ...{ expertWidth: 2048, experts: 256, computed: 9, sent: 8, overlap: "two-batch" },
    ...{ activeParameters: 37e9, parameters: 671e9 },
  },
  {
    ...BLOCK,
    ...{ name: "qwen3-235b", layers: 94, hidden: 4096, heads: 64, kv: 2 * 4 * 128 * 2 },
    ...{ expertWidth: 1536, experts: 128, computed: 8, sent: 8, overlap: "two-batch" },
    ...{ activeParameters: 22e9, parameters: 235e9 },
  },
  {
    ...{ name: "longcat-flash", layers: 28, hidden: 6144, heads: 64, kv: "latent", attentions: 2 },
    ...{ expertWidth: 2048, experts: 512, computed: 8, sent: 8, overlap: "single-batch" },
    ...{ activeParameters: 27e9, parameters: 560e9 },
  },
];

export const GPUS: readonly GpuShape[] = [
  {
    ...{ name: "h800", memoryBytes: 80e9, memoryRate: 3.35e12, peak: 1979e12, attentionRate: 660e12 },
    dollarsPerHour: 2,
  },
  {
    ...{ name: "h200", memoryBytes: 141e9, memoryRate: 4.8e12, peak: 1979e12, attentionRate: 660e12 },
    dollarsPerHour: 3,
  },
];
