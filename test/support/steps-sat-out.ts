import { FINISH, type StepResult, stepEntries } from "../../native/binding/native.ts";

/** The longest run of steps of one engine in which a sequence had no token, between its first and its last one. */
export function mostStepsSatOut(steps: readonly StepResult[]): number {
  const lastToken = new Map<string, number>();
  let most = 0;
  for (const result of steps) {
    for (const { slot, generation, tokens, finish } of stepEntries(result)) {
      if (tokens.length === 0 || finish === FINISH.skipped) continue;
      const name = `${slot}/${generation}`;
      const before = lastToken.get(name);
      if (before !== undefined) most = Math.max(most, result.step - before - 1);
      lastToken.set(name, result.step);
    }
  }
  return most;
}
