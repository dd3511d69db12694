import type { DecodeDone } from "#protocol/decode.ts";
import type { PrefillDone } from "#protocol/prefill.ts";
import type { Passage } from "./passage.ts";
import type { FirstToken } from "./prefill-outcome.ts";
import type { Settled } from "./request-flow.ts";
import type { Seat } from "./waiting-room.ts";

/** How the request ended, from what the last attempt and its ranks said. `done` is null when nothing had to be decoded. */
export function settle(passage: Passage, seat: Seat, first: FirstToken, done: DecodeDone | null): Settled {
  const computed: PrefillDone | null = first.outcome;
  return {
    finish: passage.enough ? "stop" : (done?.finish ?? computed?.finish ?? "length"),
    completionTokens: passage.generated,
    cachedTokens: passage.cachedTokens ?? done?.cachedTokens ?? 0,
    prefill: computed === null ? null : first.workerId,
    decode: first.ended ? null : seat.decode.workerId,
    attempts: passage.attempt + 1,
    drafts: { verified: done?.verifiedDrafts ?? 0, accepted: done?.acceptedDrafts ?? 0 },
    timings: { ...passage.timings },
  };
}
