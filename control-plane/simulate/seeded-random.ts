import type { Random } from "#service/clock.ts";

/** Repeatable randomness: the same `seed` gives the same sequence (mulberry32). */
export function seededRandom(seed: number): Random {
  let state = seed >>> 0;
  const uint32 = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
  return {
    uniform: () => uint32() / 2 ** 32,
    seed: () => (uint32() % 2 ** 21) * 2 ** 32 + uint32(),
    hex: (bytes) => Array.from({ length: bytes }, () => (uint32() & 0xff).toString(16).padStart(2, "0")).join(""),
  };
}

/** Another sequence for each `name`: what one part draws does not change what another one gets. */
export function namedRandom(seed: number, name: string): Random {
  let mixed = (seed ^ 0x9e3779b9) >>> 0;
  for (let i = 0; i < name.length; i++) mixed = Math.imul(mixed ^ name.charCodeAt(i), 0x01000193) >>> 0;
  return seededRandom(mixed);
}

/** Uniform between two numbers. */
export function between(random: Random, low: number, high: number): number {
  return low + random.uniform() * (high - low);
}

/** Uniform integer from `low` to `high`, both included. */
export function wholeBetween(random: Random, low: number, high: number): number {
  return low + Math.floor(random.uniform() * (high - low + 1));
}

export function chance(random: Random, probability: number): boolean {
  return random.uniform() < probability;
}

/** One of a list that is not empty. */
export function oneOf<T>(random: Random, list: readonly T[]): T {
  return list[Math.floor(random.uniform() * list.length)]!;
}
