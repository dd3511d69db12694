import { MargayError } from "#protocol/errors.ts";
import type { WorkerId } from "#protocol/ids.ts";
import type { PrefillDone, PrefillFailed } from "#protocol/prefill.ts";
import type { Rank } from "../fleet/fleet.ts";
import { refusalError } from "./refusal-error.ts";
import type { PrefillOutcome } from "./request-board.ts";

/** How the prompt was computed. `outcome` is null when the decode rank does it. */
export interface FirstToken {
  readonly outcome: PrefillDone | null;
  readonly workerId: WorkerId | null;
  /** The first token was also the last. */
  readonly ended: boolean;
}

export interface PrefillEars {
  /** A message that says nothing new, or comes from another rank. */
  readonly onDuplicate: (message: PrefillOutcome) => void;
  /** The first token was told, and then pages could not be sent: the decode rank will never have them all. */
  readonly onPagesLost: (failure: PrefillFailed) => void;
}

/** Hears what becomes of a prompt on one rank; its first word settles `outcome`. */
export function prefillListener(
  { rankId, epoch }: Rank,
  outcome: PromiseWithResolvers<PrefillDone>,
  { onDuplicate, onPagesLost }: PrefillEars,
): (message: PrefillOutcome) => void {
  let done = false;
  return (message) => {
    if (message.rankId !== rankId || message.epoch !== epoch || (done && message.kind === "prefill-done")) {
      onDuplicate(message);
    } else if (message.kind === "prefill-done") {
      done = true;
      outcome.resolve(message);
    } else if (done) onPagesLost(message);
    else outcome.reject(refusalError(message));
  };
}

/** The decode rank waits for pages in vain. */
export function pagesLost(why: string): MargayError {
  return new MargayError("transfer_failed", why);
}
