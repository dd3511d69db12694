import type { SequenceHandle } from "#protocol/kv.ts";
import type { Generation } from "#protocol/request.ts";
import {
  createStepLoop,
  FINISH,
  plannedRows,
  type StepLogprobs,
  type StepResult,
} from "../../native/binding/native.ts";
import { entriesOf, type NativeRank, planOf } from "./native-rank.ts";

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
        ? engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: "whole" })
        : { handle: attached.handle, cachedTokens: attached.length };
    const generated = attached === null ? [] : [attached.firstToken];
    return { ...opened, generation, length: opened.cachedTokens, generated, logprobs: [], finish: FINISH.none };
  });

  const rowsFor = (sequence: Running, inFlight: readonly Int32Array[], room: number): number => {
    const { generation } = sequence;
    if (sequence.finish !== FINISH.none) return 0;
    let { length } = sequence;
    let known = generation.tokens.length + sequence.generated.length;
    for (const plan of inFlight) {
      length += plannedRows(plan, sequence.handle);
      if (length === known) known++;
    }
    if (known - generation.promptLength >= generation.maxNewTokens && length === known - 1) return 0;
    return Math.min(known - length, chunk, room);
  };

  let fault: unknown = null;
  const loop = createStepLoop({
    engine,
    plan(inFlight) {
      const entries: [SequenceHandle, number][] = [];
      let room = engine.info.maxStepTokens;
      for (const sequence of running) {
        const rows = rowsFor(sequence, inFlight, room);
        if (rows > 0) entries.push([sequence.handle, rows]);
        room -= rows;
      }
      return entries.length > 0 ? planOf(...entries) : null;
    },
    onResult(result: StepResult) {
      for (const [slot, , , token, finish, length] of entriesOf(result) as [
        number,
        number,
        number,
        number,
        number,
        number,
      ][]) {
        const sequence = running.find(({ handle }) => handle.slot === slot)!;
        if (finish === FINISH.skipped) continue;
        sequence.length = length;
        sequence.finish = finish;
        if (token >= 0) sequence.generated.push(token);
      }
      for (const logprobs of result.logprobs) {
        running.find(({ handle }) => handle.slot === logprobs.slot)!.logprobs.push(logprobs);
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
  await Promise.all(running.map(({ handle }) => loop.released(handle)));
  rank.onStep = () => {};
  for (const { handle } of running) engine.closeSequence(handle, true);
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
