import type { Engine, OpenedSequence } from "#native";
import type { Generation } from "#protocol/request.ts";

/** What the token behind a prompt may be, where the request says so and nothing was generated; null: anything. */
export function firstMask({ constraint, tokens, promptLength }: Generation): Uint32Array | null {
  const first = constraint?.first ?? null;
  return first === null || tokens.length > promptLength ? null : Uint32Array.from(first);
}

/** Opens the sequence of a prompt, whose first token is bound to what its request says. Throws what the engine throws. */
export function openPrompt(engine: Engine, generation: Generation, deadlineMs: number): OpenedSequence {
  const opened = engine.openSequence({ generation, mode: "compute", deadlineMs, reserve: 0 });
  try {
    const mask = firstMask(generation);
    if (mask !== null) engine.setMask(opened.handle, mask);
    return opened;
  } catch (error) {
    engine.closeSequence(opened.handle, true);
    throw error;
  }
}
