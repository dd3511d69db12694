import { MargayError } from "#protocol/errors.ts";
import type { ResponseEnd, ResponseRecord } from "#protocol/response-entry.ts";
import type { Clock } from "#service/clock.ts";
import type { ResponseLog } from "./response-log.ts";
import { ResponseWriter } from "./response-writer.ts";

/** What happens to an answer beside its being told. */
export interface Keeping {
  /** True once something of the answer may be kept. */
  readonly begun: boolean;
  /** Returns the events to send now. */
  push(tokens: Int32Array, events: string): string;
  /** Resolves to the events to send last. Rejects where the answer could not be kept. */
  end(end: ResponseEnd, events: string): Promise<string>;
}

/** `store: false`. */
export const keepingNothing: Keeping = {
  begun: false,
  push: (_tokens, events) => events,
  end: async (_end, events) => events,
};

interface KeepingParts {
  readonly log: ResponseLog;
  readonly clock: Clock;
  readonly id: string;
  readonly record: ResponseRecord;
}

/** A stream's: events are sent once they are kept. */
export function keepingStream(
  parts: KeepingParts & {
    readonly send: (events: string) => void;
    readonly onLost: (error: MargayError) => void;
  },
): Keeping {
  let begun = false;
  const writer = new ResponseWriter({ ...parts, onWritten: parts.send });
  return {
    get begun() {
      return begun;
    },
    push(tokens, events) {
      begun = true;
      writer.push(tokens, events);
      return "";
    },
    async end(end, events) {
      begun = true;
      await writer.end(end, events);
      if (writer.state === "lost") throw new MargayError("bus_unavailable", "The response could not be stored.");
      return "";
    },
  };
}

/** That of an answer in one piece: it is kept when it is whole. */
export function keepingWhole(parts: KeepingParts): Keeping {
  const pieces: Int32Array[] = [];
  return {
    begun: false,
    push(tokens) {
      pieces.push(tokens.slice());
      return "";
    },
    async end(end) {
      let lost: MargayError | null = null;
      const onLost = (error: MargayError) => {
        lost = error;
      };
      const writer = new ResponseWriter({ ...parts, onWritten: () => {}, onLost });
      for (const piece of pieces) writer.push(piece, "");
      await writer.end(end, "");
      if (lost !== null) throw tooLarge(lost);
      return "";
    },
  };
}

/** A record that no message can hold is the client's to change. */
export function tooLarge(error: MargayError): MargayError {
  if (error.code !== "payload_too_large") return error;
  const rule = "The request is too large to be stored: set store to false.";
  return new MargayError("payload_too_large", rule, { param: "store" });
}
