import type { SequenceHandle } from "#protocol/kv.ts";
import type { Generation } from "#protocol/request.ts";
import {
  createStepLoop,
  FINISH,
  type PlanEntry,
  type StepLogprobs,
  type StepPlan,
  type StepResult,
  sameHandle,
  stepEntries,
  sumPlans,
} from "../../native/binding/native.ts";
import { WHOLE } from "./generation.ts";
import type { NativeRank } from "./native-rank.ts";

/** `reserve` of plan entries is an int32. */
const WHOLE_RESERVE = 2 ** 31 - 1;

/** What a sequence generated. */
export interface Generated {
  readonly tokens: readonly number[];
  readonly logprobs: readonly StepLogprobs[];
  readonly finish: number;
  readonly cachedTokens: number;
}

interface Running {
  readonly handle: SequenceHandle;
  readonly generation: Generation;
  readonly cachedTokens: number;
  length: number;
  joined: boolean;
  readonly generated: number[];
  readonly logprobs: StepLogprobs[];
  finish: number;
}

export interface Task {
  readonly generation: Generation;
  /** An attached sequence to go on with; null: a new one is opened. */
  readonly attached: { readonly handle: SequenceHandle; readonly length: number; readonly firstToken: number } | null;
}

/** Runs generations together through the step loop, `chunk` prompt rows of each per step, and closes them. */
export async function generateTogether(rank: NativeRank, tasks: readonly Task[], chunk = 64): Promise<Generated[]> {
  const { engine } = rank;
  const running = tasks.map(({ generation, attached }): Running => {
    const opened =
      attached === null
        ? engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: WHOLE })
        : { handle: attached.handle, cachedTokens: attached.length };
    const generated = attached === null ? [] : [attached.firstToken];
    return {
      ...opened,
      generation,
      length: opened.cachedTokens,
      joined: false,
      generated,
      logprobs: [],
      finish: FINISH.none,
    };
  });

  /** Prompts in chunks; with its last chunk a sequence joins the batch, so that no plan outlives the sequences. */
  const plan = (inFlight: readonly StepPlan[]): PlanEntry[] => {
    const flying = sumPlans(inFlight);
    const entries: PlanEntry[] = [];
    let room = engine.info.maxStepTokens - running.length;
    for (const { handle, generation, length, joined } of running) {
      const planned = flying(handle);
      const left = generation.tokens.length - length - planned.rows;
      const rows = Math.max(0, Math.min(left, chunk, room));
      if (rows > 0) entries.push({ handle, rows, reserve: rows === left ? WHOLE_RESERVE : 0 });
      else if (left <= 0 && !joined && planned.reserve === 0) entries.push({ handle, rows: 0, reserve: WHOLE_RESERVE });
      room -= rows;
    }
    return entries;
  };

  let fault: unknown = null;
  const loop = createStepLoop({
    engine,
    plan,
    onResult(result: StepResult, done: StepPlan) {
      for (const { handle, reserve } of done) {
        if (reserve > 0) running.find((sequence) => sameHandle(sequence.handle, handle))!.joined = true;
      }
      for (const { slot, tokens, logprobs, finish, length } of stepEntries(result)) {
        const sequence = running.find(({ handle }) => handle.slot === slot)!;
        if (finish === FINISH.skipped) continue;
        sequence.length = length;
        sequence.finish = finish;
        sequence.generated.push(...tokens);
        sequence.logprobs.push(...logprobs);
      }
    },
    onFault: (error) => {
      fault = error;
    },
  });
  rank.onStep = (result) => loop.settle(result);
  loop.wake();
  await rank.until("all sequences to end", () => {
    if (fault !== null) throw fault;
    return running.every(({ finish }) => finish !== FINISH.none);
  });
  await Promise.all(running.map(({ handle }) => loop.close(handle, true)));
  rank.onStep = () => {};
  return running.map(({ generated: tokens, logprobs, finish, cachedTokens }) => ({
    tokens,
    logprobs,
    finish,
    cachedTokens,
  }));
}

/** One new generation on its own. */
export async function generate(rank: NativeRank, generation: Generation, chunk = 64): Promise<Generated> {
  return (await generateTogether(rank, [{ generation, attached: null }], chunk))[0]!;
}
