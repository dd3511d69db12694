import { ResumeReply, ResumeStream } from "#protocol/decode.ts";
import { asMargayError, type MargayError } from "#protocol/errors.ts";
import type { RankId } from "#protocol/ids.ts";
import { subjects } from "#protocol/subjects.ts";
import { ANSWER_MS } from "./deadlines.ts";
import type { Passage } from "./passage.ts";
import { refusalError } from "./refusal-error.ts";
import type { FlowParts } from "./request-flow.ts";

/**
 * Asks a decode rank for tokens that are missing. `onTrouble` hears when the attempt cannot go on there: the rank does not
 * know the request any more, or does not answer.
 */
export async function resumeStream(
  { bus, clock, metrics }: Pick<FlowParts, "bus" | "clock" | "metrics">,
  passage: Passage,
  rankId: RankId,
  message: ResumeStream,
  onTrouble: (error: MargayError) => void,
): Promise<void> {
  const { tokens } = passage;
  const { round } = tokens;
  const over = (): boolean => tokens.round !== round;
  try {
    const reply = await bus.request(subjects.resume(rankId), ResumeStream, message, ResumeReply, ANSWER_MS);
    if (over()) return;
    tokens.answered();
    if (reply.kind === "refused") {
      onTrouble(refusalError(reply));
      return;
    }
    const before = tokens.next;
    tokens.take(reply.chunk, clock.monotonic());
    if (tokens.next > before || reply.chunk.done !== null) metrics.count("margay_streams_resumed_total", {});
  } catch (thrown) {
    if (over()) return;
    tokens.answered();
    // While the bus is away, or is back for us and not yet for it, the rank goes on and keeps what it makes: the next sweep
    // asks again, and the fleet tells if it is gone.
    const error = asMargayError(thrown);
    if (error.code !== "bus_unavailable" && error.code !== "worker_lost") onTrouble(error);
  }
}
