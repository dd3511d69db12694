import { finishReason, type StepLogprobs } from "#native";
import type { RankId } from "#protocol/ids.ts";
import type { Reservation, SequenceHandle } from "#protocol/kv.ts";
import type { PrefillDone } from "#protocol/prefill.ts";
import type { Generation, Logprobs, RequestHead } from "#protocol/request.ts";
import type { Timer } from "#service/clock.ts";
import { firstMask } from "./open-prompt.ts";
import type { Lead } from "./prefix-lead.ts";

/** One attempt on a prefill rank; prefill-requests.ts has its life. */
export interface PrefillRequest {
  readonly head: RequestHead;
  readonly generation: Generation;
  readonly tokens: Int32Array;
  readonly given: number;
  readonly admittedMs: number;
  readonly deadlineMs: number;
  readonly deadline: Timer;
  /** While waiting, of a sequence that keeps its place. */
  handle: SequenceHandle;
  cachedTokens: number;
  phase: "waiting" | "computing" | "computed" | "sending" | "leaving";
  /** Whom it waits for. */
  lead: Lead<PrefillRequest> | null;
  /** Where its pages go; null: not known yet. */
  reservation: Reservation | null;
  /** Prompt rows that no settled step has computed; while waiting, that it will have to compute. */
  left: number;
  /** Monotonic time at which the first step began. */
  startedMs: number | null;
  /** Its share of the steps so far, milliseconds. */
  gpuMs: number;
  /** The owner has heard of its first token. */
  told: boolean;
  /** The decode rank has every page. */
  sent: boolean;
  /** The engine has let go of its rows. */
  released: Promise<void>;
}

/** Its sequence is not closed yet. */
export function holdsSequence({ phase }: PrefillRequest): boolean {
  return phase === "waiting" || phase === "computing" || phase === "computed";
}

/** The share of a prompt in the step that ends it, as steps are planned: they hold all rows there are, as far as they can. */
export function shareOfLastStep(
  { left }: PrefillRequest,
  computing: readonly PrefillRequest[],
  maxStepTokens: number,
): number {
  const rows = computing.reduce((sum, request) => sum + request.left, 0);
  return left / Math.max(left, Math.min(rows, maxStepTokens));
}

/** The share of steps of which the owner has not heard with an outcome, milliseconds. */
export function untoldMs(requests: readonly PrefillRequest[]): number {
  return requests.reduce((sum, { told, gpuMs }) => sum + (told ? 0 : gpuMs), 0);
}

/**
 * What the owner hears of a prompt's first token. `finish` is a `FINISH` code. Of a constrained request whose
 * beginning is not known (see `firstMask`) the decode rank chooses the first token too.
 */
export function doneWith(
  request: PrefillRequest,
  at: { readonly rankId: RankId; readonly epoch: number; readonly nowMs: number },
  firstToken: number,
  logprobs: StepLogprobs | null,
  finish: number,
): PrefillDone {
  const startedMs = request.startedMs ?? request.admittedMs;
  const constrained = request.generation.constraint !== null && firstMask(request.generation) === null;
  return {
    kind: "prefill-done",
    head: request.head,
    rankId: at.rankId,
    epoch: at.epoch,
    firstToken: constrained ? null : firstToken,
    logprobs: constrained || logprobs === null ? null : packLogprobs(logprobs),
    finish: constrained ? null : finishReason(finish),
    cachedTokens: request.cachedTokens,
    queueMs: Math.max(0, startedMs - request.admittedMs),
    computeMs: at.nowMs - startedMs,
    gpuMs: request.gpuMs,
  };
}

function packLogprobs({ chosen, ids, values }: StepLogprobs): Logprobs {
  return { chosen: Float32Array.of(chosen), width: ids.length, ids, values };
}
