import type { SequenceHandle } from "#protocol/kv.ts";
import type { Engine, StepResult } from "./native.ts";
import { refusalCode } from "./refusal-code.ts";
import { FINISH, STEP_ENTRY_WIDTH } from "./step-entries.ts";
import { packPlan, type StepPlan, sameHandle } from "./step-plan.ts";

/** Plans queued at once, that of the running step included: one takes effect while the next waits ready. */
const DEPTH = 2;

export interface StepLoopParts {
  readonly engine: Pick<Engine, "submit" | "closeSequence">;
  /**
   * The next change over the state after all results so far and, on top, the plans in flight (oldest first). Empty:
   * nothing is to change; the engine goes on with its batch.
   */
  readonly plan: (inFlight: readonly StepPlan[]) => StepPlan;
  /** A step is over; `plan` is what it began with, empty when it repeated the batch. */
  readonly onResult: (result: StepResult, plan: StepPlan) => void;
  /** A plan was refused: a mistake of the planner, or the engine is gone. The loop has stopped. */
  readonly onFault: (error: unknown) => void;
}

export interface StepLoop {
  /** Something may be there to plan. Cheap; call it whenever a sequence became runnable. */
  wake(): void;
  /** The engine's `onStep`. */
  settle(result: StepResult): void;
  /**
   * `Engine.closeSequence`; resolves when the running step, should it have rows of the sequence, is over. An engine that
   * failed holds nothing any more: its last steps may settle before it is heard of that.
   */
  close(handle: SequenceHandle, keep: boolean): Promise<void>;
  /** Plans nothing more. Steps still settle. */
  stop(): void;
}

/**
 * Keeps the engine's plans ahead of its steps: what is to change next is decided while a step runs.
 *
 *   plan -> submitted (in flight) -> settled
 *
 * 1 at most DEPTH plans are in flight
 * 2 `plan` never sees a state in which a settled step is missing or counted twice: a plan leaves those in flight and
 *   its result is obeyed before anything is planned again
 */
export function createStepLoop(parts: StepLoopParts): StepLoop {
  const inFlight: StepPlan[] = [];
  /** Closed while their rows were in a step. */
  const closing: { readonly handle: SequenceHandle; readonly resolve: () => void }[] = [];
  let stopped = false;
  let settling = false;

  function fill(): void {
    while (!stopped && !settling && inFlight.length < DEPTH) {
      const plan = parts.plan(inFlight);
      if (plan.length === 0) return;
      try {
        parts.engine.submit(packPlan(plan));
      } catch (error) {
        stopped = true;
        parts.onFault(error);
        return;
      }
      inFlight.push(plan);
    }
  }

  function release({ entries }: StepResult): void {
    for (let at = 0; at < entries.length && closing.length > 0; at += STEP_ENTRY_WIDTH) {
      if (entries[at + 4] !== FINISH.skipped) continue;
      const handle = { slot: entries[at]!, generation: entries[at + 1]! };
      const index = closing.findIndex((closed) => sameHandle(closed.handle, handle));
      if (index >= 0) closing.splice(index, 1)[0]!.resolve();
    }
  }

  /** Closes a sequence; true: the running step has rows of it. */
  function runs(handle: SequenceHandle, keep: boolean): boolean {
    try {
      return parts.engine.closeSequence(handle, keep);
    } catch (error) {
      if (refusalCode(error) === "draining") return false;
      throw error;
    }
  }

  return {
    wake: fill,
    settle(result) {
      const plan = result.plan >= 0 ? (inFlight.shift() ?? []) : [];
      settling = true;
      parts.onResult(result, plan);
      settling = false;
      release(result);
      fill();
    },
    close(handle, keep) {
      if (!runs(handle, keep)) return Promise.resolve();
      return new Promise((resolve) => closing.push({ handle, resolve }));
    },
    stop() {
      stopped = true;
    },
  };
}
