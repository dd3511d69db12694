import type { EngineInfo, EngineOptions } from "./native.ts";
import type { SimFabric } from "./sim-fabric.ts";

/** Ends a timer. */
export interface SimTimer {
  cancel(): void;
}

/** The part of a clock that a simulated engine needs: epoch milliseconds, a steady count of milliseconds, and timers. */
export interface SimClock {
  now(): number;
  monotonic(): number;
  after(ms: number, fn: () => void): SimTimer;
}

/** What a simulated engine pretends to be. Times in milliseconds. */
export interface SimModel {
  readonly clock: SimClock;
  readonly fabric: SimFabric;
  readonly modelHash: string;
  readonly vocabSize: number;
  readonly contextLength: number;
  readonly attentions: number;
  readonly pageBytes: number;
  /** Real experts. */
  readonly experts: number;
  /** One step costs `stepMs + rows * rowMs`; a block needs `transferMs` to reach the peer. */
  readonly stepMs: number;
  readonly rowMs: number;
  readonly transferMs: number;
  /** True where generated token number `index` of this prompt is end of text, or not a number. */
  readonly eosAt: (tokens: Int32Array, index: number) => boolean;
  readonly numericAt: (tokens: Int32Array, index: number) => boolean;
  /** A planted mistake, to show that simulations find it: pages are taken for whatever is in the slot they name. */
  readonly trustsPages: boolean;
}

/** A small model that never ends by itself. */
export function simModel(clock: SimClock, fabric: SimFabric, changes: Partial<SimModel> = {}): SimModel {
  return {
    clock,
    fabric,
    modelHash: "sim",
    vocabSize: 2048,
    contextLength: 4096,
    attentions: 6,
    pageBytes: 32_768,
    experts: 12,
    stepMs: 1,
    rowMs: 0.01,
    transferMs: 1,
    eosAt: () => false,
    numericAt: () => false,
    trustsPages: false,
    ...changes,
  };
}

/** What an engine counts of its steps, before the first one. A simulated engine makes no drafts. */
export const simCounters = () => ({
  steps: 0,
  computeMs: 0,
  prefillTokens: 0,
  decodeTokens: 0,
  prefixCachedTokens: 0,
  draftsProposed: 0,
  draftsVerified: 0,
  draftsAccepted: 0,
});

/** What was opened. */
export function simInfo(options: EngineOptions, model: SimModel, kvBlocks: number, kvPort: number): EngineInfo {
  const { modelHash, attentions, vocabSize, contextLength, pageBytes } = model;
  return {
    modelHash,
    layout: `sim-a${attentions}`,
    vocabSize,
    contextLength,
    attentions,
    pageBytes,
    kvBlocks,
    slots: options.slots,
    maxStepTokens: options.maxStepTokens,
    speculation: 0,
    backend: "ref",
    isa: "sim",
    threads: 1,
    kvPort,
    hostKey: "sim",
    weightBytes: 0,
    packedHit: false,
    openMs: { kernels: 0, weights: 0, pool: 0 },
    warnings: [],
  };
}
