import type { ErrorCode } from "#protocol/errors.ts";
import type { NativeErrorCode } from "./native.ts";

const REFUSALS: Readonly<Record<NativeErrorCode, ErrorCode>> = {
  stale_handle: "unknown_request",
  no_slot: "busy",
  no_blocks: "busy",
  too_long: "context_length_exceeded",
  bad_state: "unknown_request",
  bad_argument: "invalid_request",
  queue_full: "busy",
  checkpoint: "internal",
  io: "internal",
  closed: "draining",
  group_lost: "worker_lost",
};

/** What a peer is told about an error the engine threw. */
export function refusalCode(thrown: unknown): ErrorCode {
  if (!(thrown instanceof Error) || !("code" in thrown)) return "internal";
  return REFUSALS[thrown.code as NativeErrorCode] ?? "internal";
}
