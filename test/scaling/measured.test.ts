import { describe, expect, test } from "vitest";
import { NO_TRAFFIC, type Traffic } from "#protocol/demand.ts";
import type { RankId } from "#protocol/ids.ts";
import { NO_RANK_WORK, type Work } from "#protocol/worker.ts";
import type { Rank } from "../../control-plane/fleet/fleet.ts";
import { capacitySignals } from "../../control-plane/scaling/capacity-signals.ts";
import { StepTimes } from "../../control-plane/scaling/step-times.ts";
import { TrafficMeter } from "../../control-plane/scaling/traffic-meter.ts";
import { loadOf } from "../support/fleet-of.ts";

function rankOf(work: Partial<Work>, changes: Partial<Rank> = {}): Rank {
  const load = loadOf({ work: { ...NO_RANK_WORK, ...work } });
  return { rankId: "d-r0" as RankId, epoch: 1, load, ...changes } as Rank;
}

/** Heartbeats of a decode rank whose steps take `base + each * batch` ms and give `gain` tokens to each stream. */
function decodes(steps: StepTimes, batches: readonly number[], { base = 4, each = 0.5, gain = 1 } = {}): void {
  let work: Work = NO_RANK_WORK;
  steps.look([rankOf(work)]);
  for (const batch of batches) {
    work = {
      ...work,
      steps: work.steps + 10,
      busyMs: work.busyMs + 10 * (base + each * batch),
      streamSteps: work.streamSteps + 10 * batch,
      tokens: work.tokens + 10 * batch * gain,
    };
    steps.look([rankOf(work)]);
  }
}

describe("step times, out of heartbeats", () => {
  test("are a line over the streams of a step, wherever it was not seen", () => {
    const steps = new StepTimes();
    expect(steps.tokenMs(8)).toBeNull();
    decodes(steps, [1, 4, 2, 8, 3, 6]);
    expect(steps.tokenMs(1)).toBeCloseTo(4.5, 5);
    expect(steps.tokenMs(32)).toBeCloseTo(20, 5);
  });

  test("count what speculation gains", () => {
    const steps = new StepTimes();
    decodes(steps, [1, 4, 2, 8], { gain: 1.6 });
    expect(steps.tokenMs(8)).toBeCloseTo(8 / 1.6, 5);
  });

  test("follow a machine that becomes slower", () => {
    const steps = new StepTimes();
    decodes(
      steps,
      Array.from({ length: 100 }, (_, i) => 1 + (i % 8)),
    );
    decodes(
      steps,
      Array.from({ length: 300 }, (_, i) => 1 + (i % 8)),
      { base: 12, each: 1.5 },
    );
    expect(steps.tokenMs(8)).toBeGreaterThan(23);
  });

  test("of prompts are per row, and a rank that begins anew tells nothing by falling back", () => {
    const steps = new StepTimes();
    steps.look([rankOf({ steps: 100, busyMs: 9_000, promptRows: 500 })]);
    expect(steps.promptRowMs).toBeNull();
    steps.look([rankOf({ steps: 104, busyMs: 9_800, promptRows: 900 })]);
    expect(steps.promptRowMs).toBeCloseTo(2, 5);
    steps.look([rankOf({ steps: 1, busyMs: 1, promptRows: 1 }, { epoch: 2 })]);
    steps.look([rankOf({ steps: 2, busyMs: 201, promptRows: 101 }, { epoch: 2 })]);
    expect(steps.promptRowMs).toBeCloseTo(2, 5);
  });
});

describe("what came, out of counters", () => {
  const traffic = (arrived: number, changes: Partial<Traffic> = {}): Traffic => ({
    ...NO_TRAFFIC,
    ...{ arrived, promptTokens: 100 * arrived, promptSquares: 10_000 * arrived },
    ...changes,
  });
  const at = (counters: Record<string, Traffic>) => new Map(Object.entries(counters));

  test("is the sum over control planes, one that joins or leaves changes no rate by itself", () => {
    const meter = new TrafficMeter(0, at({ a: traffic(50) }));
    expect(meter.means(0)).toBeNull();
    meter.look(5_000, at({ a: traffic(60), b: traffic(1_000) }));
    meter.look(10_000, at({ a: traffic(70), b: traffic(1_010) }));
    expect(meter.means(10_000)).toMatchObject({ short: 3, long: 3, promptTokens: 100, promptVariation: 0 });
    meter.look(15_000, at({ a: traffic(70) }));
    expect(meter.means(15_000)!.short).toBe(2);
    meter.look(100_000, at({ a: traffic(70) }));
    expect(meter.means(100_000)).toMatchObject({ short: 0, long: 0.3, promptTokens: 100 });
  });

  test("tells shares of cached tokens and late first tokens, and outputs of what ended", () => {
    const meter = new TrafficMeter(0, at({ a: NO_TRAFFIC }));
    meter.look(2_000, at({ a: traffic(4) }));
    expect(meter.means(2_000)).toMatchObject({ cachedShare: 0, late: null, outputTokens: null });
    const ended = { ended: 2, endedPromptTokens: 200, cachedTokens: 150, outputTokens: 60 };
    meter.look(4_000, at({ a: traffic(4, { ...ended, firstTokens: 4, lateTokens: 1 }) }));
    expect(meter.means(4_000)).toMatchObject({ cachedShare: 0.75, late: 0.25, outputTokens: 30 });
  });
});

describe("in the planner's terms", () => {
  const demand = {
    waiting: 3,
    oldestWaitMs: 900,
    missing: "prefill",
    running: 5,
    idleMs: 0,
    waitingTokens: 800,
  } as const;
  const means = {
    ...{ short: 2, long: 1, promptTokens: 200, promptVariation: 0.5 },
    ...{ cachedShare: 0.25, outputTokens: 40, late: 0 },
  };

  test("a prompt costs what its uncached tokens take all ranks of a worker; what waits is work too", () => {
    const prefill = new StepTimes();
    prefill.look([rankOf({})]);
    prefill.look([rankOf({ steps: 1, busyMs: 200, promptRows: 100 })]);
    const decode = new StepTimes();
    decodes(decode, [1, 4, 2, 8]);
    const signals = capacitySignals({
      ...{ nowMs: 1, demand, traffic: means, tpotGoalMs: 0, coldStartMs: 5_000 },
      prefill: { ranks: [], steps: prefill, ranksPerWorker: 2 },
      decode: { ranks: [rankOf({})], steps: decode, ranksPerWorker: 2 },
    });
    expect(signals.prefillSeconds).toBeCloseTo(0.15, 6);
    expect(signals.queuedSeconds).toBeCloseTo(0.6, 6);
    // Eight slots to a rank, or 64 blocks for streams of five.
    expect(signals.streamsPerGroup).toBe(16);
    expect(signals.streamSeconds).toBeCloseTo((40 * 8) / 1000, 6);
  });

  test("a goal for the time per token bounds the streams; without a measure of steps nothing is known of it", () => {
    const decode = new StepTimes();
    const of = (tpotGoalMs: number) =>
      capacitySignals({
        ...{ nowMs: 1, demand, traffic: means, tpotGoalMs, coldStartMs: 5_000 },
        prefill: { ranks: [], steps: new StepTimes(), ranksPerWorker: 1 },
        decode: { ranks: [rankOf({})], steps: decode, ranksPerWorker: 1 },
      });
    expect(of(6)).toMatchObject({ streamsPerGroup: null, streamSeconds: null, prefillSeconds: null });
    expect(of(0)).toMatchObject({ streamsPerGroup: 8, streamSeconds: null });
    decodes(decode, [1, 4, 2, 8]);
    expect(of(6.1).streamsPerGroup).toBe(4);
  });
});
