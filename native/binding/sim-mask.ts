import { type SimSequence, simFailure } from "./sim-sequence.ts";

const WORD_BITS = 32;

/** `Engine.setMask`. */
export function setSimMask(sequence: SimSequence, mask: Uint32Array | null, vocabSize: number): void {
  const words = Math.ceil(vocabSize / WORD_BITS);
  if (mask?.length === 0) {
    sequence.mask = "awaited";
    return;
  }
  if (mask !== null && mask.length !== words) throw simFailure("bad_argument", `a mask takes ${words} words`);
  if (mask?.every((word) => word === 0)) throw simFailure("bad_argument", "a mask allows no token");
  sequence.mask = mask?.slice() ?? null;
}

/** The token itself where a mask allows it, else the first that it allows. */
export function masked(token: number, mask: Uint32Array | "awaited" | null): number {
  if (!(mask instanceof Uint32Array)) return token;
  const allows = (id: number) => ((mask[Math.floor(id / WORD_BITS)]! >>> (id % WORD_BITS)) & 1) === 1;
  if (allows(token)) return token;
  let first = 0;
  while (!allows(first)) first++;
  return first;
}
