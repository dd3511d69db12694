import { isoTime } from "#service/clock.ts";

/** Epoch milliseconds as the API server wants a MicroTime: always six digits of a second. */
export function microTime(epochMs: number): string {
  return isoTime(epochMs).replace("Z", "000Z");
}
