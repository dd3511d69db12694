import type { ExpertMap } from "#protocol/expert-map.ts";

/** Every member holds as many experts as the next one, or one more, side by side. */
export function contiguousMap(experts: number, members: number): ExpertMap {
  return { version: 1, owners: Array.from({ length: experts }, (_, i) => [Math.floor((i * members) / experts)]) };
}
