import type { SequenceHandle } from "#protocol/kv.ts";
import type { Engine, StepResult } from "./native.ts";
import { plannedRows } from "./step-plan.ts";

/** Steps queued at once, the running one included: one computes while the next waits ready. */
const DEPTH = 2;

export interface StepLoopParts {
  readonly engine: Pick<Engine, "submit">;
  /** The next step over the state after all results so far and, on top, the steps in flight (oldest first). */
  readonly plan: (inFlight: readonly Int32Array[]) => Int32Array | null;
  readonly onResult: (result: StepResult) => void;
  /** A plan was refused: a mistake of the planner, or the engine is gone. The loop has stopped. */
  readonly onFault: (error: unknown) => void;
}

export interface StepLoop {
  /** Something may be there to compute. Cheap; call it whenever a sequence became runnable. */
  wake(): void;
  /** The engine's `onStep`. */
  settle(result: StepResult): void;
  /** Resolves when no step in flight names the sequence: after a close, the engine has let go of its rows then. */
  released(handle: SequenceHandle): Promise<void>;
  /** Plans nothing more. Steps in flight still settle. */
  stop(): void;
}

interface Waiter {
  readonly handle: SequenceHandle;
  readonly resolve: () => void;
}

/**
 * Keeps the engine fed: plans the next step while one runs.
 *
 *   plan -> submitted (in flight) -> settled
 *
 * 1 at most DEPTH plans are in flight
 * 2 `plan` never sees a state in which a settled step is missing or counted twice: a step leaves the plans in flight
 *   and its result is obeyed before anything is planned again
 */
export function createStepLoop(parts: StepLoopParts): StepLoop {
  const inFlight: Int32Array[] = [];
  let waiters: Waiter[] = [];
  let stopped = false;
  let settling = false;

  function fill(): void {
    while (!stopped && !settling && inFlight.length < DEPTH) {
      const plan = parts.plan(inFlight);
      if (plan === null) return;
      try {
        parts.engine.submit(plan);
      } catch (error) {
        stopped = true;
        parts.onFault(error);
        return;
      }
      inFlight.push(plan);
    }
  }

  const flying = (handle: SequenceHandle) => inFlight.some((plan) => plannedRows(plan, handle) > 0);

  return {
    wake: fill,
    settle(result) {
      inFlight.shift();
      settling = true;
      parts.onResult(result);
      settling = false;
      fill();
      if (waiters.length === 0) return;
      const ready = waiters.filter((waiter) => !flying(waiter.handle));
      waiters = waiters.filter((waiter) => flying(waiter.handle));
      for (const { resolve } of ready) resolve();
    },
    released(handle) {
      if (!flying(handle)) return Promise.resolve();
      return new Promise((resolve) => waiters.push({ handle, resolve }));
    },
    stop() {
      stopped = true;
    },
  };
}
