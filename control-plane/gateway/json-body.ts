import { MargayError } from "#protocol/errors.ts";

/** Parses a request body. Throws `invalid_request` with the place of the fault where the engine tells it. */
export function parseJsonBody(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    // Only the place is taken over: the engine's message quotes the body.
    const message = (error as Error).message;
    const position = /at position (\d+)/.exec(message)?.[1] ?? (message.includes("end of JSON") ? text.length : null);
    const place = position === null ? "" : ` (at character ${position})`;
    throw new MargayError("invalid_request", `The body is not valid JSON${place}.`);
  }
}
