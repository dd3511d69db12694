import type { StepLogprobs } from "#native";
import type { Reservation, SequenceHandle } from "#protocol/kv.ts";
import type { Generation, Logprobs, RequestHead } from "#protocol/request.ts";
import type { Timer } from "#service/clock.ts";
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
  /** The decode rank has every page. */
  sent: boolean;
  /** The engine has let go of its rows. */
  released: Promise<void>;
}

/** Its sequence is not closed yet. */
export function holdsSequence({ phase }: PrefillRequest): boolean {
  return phase === "waiting" || phase === "computing" || phase === "computed";
}

export function packLogprobs({ chosen, ids, values }: StepLogprobs): Logprobs {
  return { chosen: Float32Array.of(chosen), width: ids.length, ids, values };
}
