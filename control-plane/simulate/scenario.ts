import type { Random } from "#service/clock.ts";
import { between, chance, namedRandom, oneOf, wholeBetween } from "./seeded-random.ts";
import type { NetworkWeather } from "./sim-network.ts";
import type { Naming } from "./sim-target.ts";

/** What one client asks, and does. */
export interface SimRequest {
  readonly number: number;
  readonly atMs: number;
  readonly prompt: Int32Array;
  readonly maxTokens: number;
  readonly stream: boolean;
  /** The answer is to end at a piece of its own text. */
  readonly stopsEarly: boolean;
  /** The client goes away so long after it asked; null: it stays. */
  readonly leavesAfterMs: number | null;
  /** Which of the control planes it asks, as a number to be taken modulo how many there are. */
  readonly gateway: number;
}

/** Something that goes wrong. `pick` chooses among whatever is there at that moment. */
export type Fault =
  | { readonly kind: "crash"; readonly atMs: number; readonly pick: number; readonly what: "process" | "host" }
  | { readonly kind: "engine"; readonly atMs: number; readonly pick: number }
  /** The whole process stands still, or JavaScript alone while its engine goes on. */
  | {
      readonly kind: "freeze";
      readonly atMs: number;
      readonly pick: number;
      readonly ms: number;
      readonly all: boolean;
    }
  /** Frozen and given up: another takes its name, and then it wakes. */
  | { readonly kind: "zombie"; readonly atMs: number; readonly pick: number; readonly ms: number }
  | { readonly kind: "drain"; readonly atMs: number; readonly pick: number; readonly graceMs: number }
  | { readonly kind: "clock"; readonly atMs: number; readonly pick: number; readonly aheadMs: number }
  /** It tells of more room than it has. */
  | { readonly kind: "boast"; readonly atMs: number; readonly pick: number; readonly ms: number }
  /** A connection to the bus breaks; each side notices in its own time. */
  | {
      readonly kind: "cut";
      readonly atMs: number;
      /** Below 0: that of a control plane. */
      readonly pick: number;
      readonly ms: number;
      readonly noticedMs: number;
      readonly ghostMs: number;
    }
  | { readonly kind: "bus"; readonly atMs: number; readonly ms: number }
  /** Pages are lost, damaged, late or doubled with this probability each. */
  | { readonly kind: "pages"; readonly atMs: number; readonly ms: number; readonly share: number }
  | { readonly kind: "gateway-freeze"; readonly atMs: number; readonly pick: number; readonly ms: number }
  | { readonly kind: "gateway-crash"; readonly atMs: number };

export interface Scenario {
  readonly seed: number;
  readonly requests: readonly SimRequest[];
  readonly faults: readonly Fault[];
  readonly weather: NetworkWeather;
  readonly naming: Naming;
  readonly controlPlanes: number;
  readonly localPrefillTokens: number;
  readonly minWorkers: number;
  readonly maxWorkers: number;
  readonly idleMs: number;
  readonly pool: { readonly slots: number; readonly kvBlocks: number; readonly maxStepTokens: number };
  readonly startMs: readonly [number, number];
  readonly stepMs: number;
  /** What a block needs from one rank to another. */
  readonly transferMs: number;
}

export interface ScenarioOptions {
  readonly requests: number;
  /** Nothing goes wrong. */
  readonly calm?: boolean;
}

const VOCABULARY = [16, 2048] as const;

/** The world that a seed stands for. */
export function scenarioOf(seed: number, options: ScenarioOptions): Scenario {
  const random = namedRandom(seed, "scenario");
  const calm = options.calm === true;
  const rate = oneOf(random, [20, 60, 150]);
  const lastMs = 500 + (options.requests / rate) * 1000;
  const hostile = !calm && chance(random, 0.35);
  const controlPlanes = chance(random, 0.3) ? 2 : 1;
  const minWorkers = wholeBetween(random, 0, 1);
  return {
    seed,
    requests: requestsOf(namedRandom(seed, "requests"), options.requests, lastMs),
    faults: calm ? [] : faultsOf(namedRandom(seed, "faults"), lastMs, controlPlanes),
    weather: {
      leastMs: 0.1,
      mostMs: oneOf(random, [0.5, 2, 20]),
      lost: hostile ? oneOf(random, [0.002, 0.02]) : 0,
      doubled: hostile ? oneOf(random, [0, 0.05]) : 0,
      overtaken: hostile ? oneOf(random, [0, 0.1]) : 0,
    },
    naming: chance(random, 0.5) ? "same" : "fresh",
    controlPlanes,
    localPrefillTokens: oneOf(random, [0, 0, 64]),
    minWorkers,
    maxWorkers: wholeBetween(random, 2, 4),
    idleMs: oneOf(random, [500, 5_000, 60_000]),
    pool: {
      slots: chance(random, 0.5) ? wholeBetween(random, 2, 4) : wholeBetween(random, 5, 16),
      kvBlocks: wholeBetween(random, 24, 96),
      maxStepTokens: oneOf(random, [64, 128, 256]),
    },
    startMs: oneOf(random, [
      [100, 500],
      [1_000, 6_000],
    ]),
    stepMs: oneOf(random, [2, 8, 20]),
    transferMs: oneOf(random, [0.5, 5, 40]),
  };
}

function requestsOf(random: Random, count: number, lastMs: number): SimRequest[] {
  const documents = Array.from({ length: 6 }, () => tokensOf(random, wholeBetween(random, 60, 400)));
  return Array.from({ length: count }, (_, number) => {
    const document = chance(random, 0.6) ? oneOf(random, documents) : new Int32Array();
    const shared = document.subarray(0, wholeBetween(random, 0, document.length));
    const own = tokensOf(random, wholeBetween(random, 1, chance(random, 0.2) ? 300 : 60));
    return {
      number,
      atMs: chance(random, 0.3) ? Math.floor(between(random, 0, lastMs) / 500) * 500 : between(random, 0, lastMs),
      prompt: Int32Array.of(...shared, ...own),
      maxTokens: chance(random, 0.1) ? wholeBetween(random, 40, 160) : wholeBetween(random, 1, 30),
      stream: chance(random, 0.7),
      stopsEarly: chance(random, 0.1),
      leavesAfterMs: chance(random, 0.2) ? between(random, 0, chance(random, 0.5) ? 300 : 3_000) : null,
      gateway: wholeBetween(random, 0, 3),
    };
  });
}

function tokensOf(random: Random, length: number): Int32Array {
  return Int32Array.from({ length }, () => wholeBetween(random, VOCABULARY[0], VOCABULARY[1] - 1));
}

function faultsOf(random: Random, lastMs: number, controlPlanes: number): Fault[] {
  const count = wholeBetween(random, 1, 10);
  return Array.from({ length: count }, () => faultOf(random, between(random, 200, lastMs + 2_000), controlPlanes)).sort(
    (a, b) => a.atMs - b.atMs,
  );
}

function faultOf(random: Random, atMs: number, controlPlanes: number): Fault {
  const pick = wholeBetween(random, 0, 1_000);
  const ms = chance(random, 0.5) ? between(random, 50, 2_000) : between(random, 2_000, 20_000);
  const kinds = ["crash", "engine", "freeze", "zombie", "drain", "clock", "boast", "cut", "bus", "pages"] as const;
  const more = ["gateway-freeze", ...(controlPlanes > 1 ? (["gateway-crash"] as const) : [])] as const;
  const kind = oneOf<Fault["kind"]>(random, [...kinds, ...more]);
  switch (kind) {
    case "crash":
      return { kind, atMs, pick, what: chance(random, 0.5) ? "process" : "host" };
    case "engine":
      return { kind, atMs, pick };
    case "freeze":
      return { kind, atMs, pick, ms, all: chance(random, 0.6) };
    case "zombie":
      return { kind, atMs, pick, ms: between(random, 1_000, 15_000) };
    case "drain":
      return { kind, atMs, pick, graceMs: between(random, 0, 5_000) };
    case "clock":
      return { kind, atMs, pick, aheadMs: between(random, -8_000, 8_000) };
    case "boast":
      return { kind, atMs, pick, ms };
    case "cut": {
      const noticedMs = chance(random, 0.5) ? 0 : between(random, 0, ms);
      const ghostMs = chance(random, 0.5) ? 0 : between(random, 0, ms);
      return { kind, atMs, pick: chance(random, 0.3) ? -1 - pick : pick, ms, noticedMs, ghostMs };
    }
    case "bus":
      return { kind, atMs, ms: between(random, 50, 5_000) };
    case "pages":
      return { kind, atMs, ms, share: between(random, 0.01, 0.8) };
    case "gateway-freeze":
      return { kind, atMs, pick, ms: between(random, 50, 10_000) };
    case "gateway-crash":
      return { kind, atMs };
  }
}
