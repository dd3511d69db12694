import type { StartReply } from "#protocol/decode.ts";
import type { ErrorCode } from "#protocol/errors.ts";
import type { Reservation } from "#protocol/kv.ts";
import type { Generation, RequestHead } from "#protocol/request.ts";
import type { ConstrainedText } from "./constraint-desk.ts";
import type { DecodeSequence } from "./decode-batch.ts";

/** What is remembered of an attempt that left: what a late message is told, and the answer to its start. */
export interface Ending {
  readonly code: ErrorCode;
  readonly start: Promise<StartReply> | null;
}

/** One attempt on a decode rank; decode-requests.ts has its life. */
export interface DecodeRequest {
  readonly head: RequestHead;
  readonly generation: Generation;
  readonly reservation: Reservation;
  /** Tokens its blocks were opened for. */
  readonly capacity: number;
  phase: "reserved" | "starting" | "decoding" | "leaving";
  start: Promise<StartReply> | null;
  /** Why it left, for whoever waits for its start. */
  ending: ErrorCode;
  /** Once it decodes. */
  sequence: DecodeSequence | null;
  /** Of one with a constraint, once it decodes. */
  text: ConstrainedText | null;
  /** The engine has let go of it. */
  released: Promise<void>;
  /** Monotonic time of its start. */
  startedMs: number;
}

/** What an attempt that is over is told. */
export function codeOf(ended: Ending | "superseded" | null): ErrorCode {
  return ended === null || ended === "superseded" ? "cancelled" : ended.code;
}
