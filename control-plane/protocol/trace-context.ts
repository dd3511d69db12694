import { z } from "zod";

/** `traceparent` of W3C Trace Context, version 00. It travels in a request's head where the request is traced. */
export const TraceParent = z.string().regex(/^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/);

/** A place in a trace: new spans become children of `spanId`. */
export interface TraceContext {
  /** 32 hexadecimal digits. */
  readonly traceId: string;
  /** 16 hexadecimal digits. */
  readonly spanId: string;
}

/** What a caller's header says; null: nothing that can be understood. Zeros alone name nothing. */
export function parseTraceParent(header: unknown): (TraceContext & { readonly sampled: boolean }) | null {
  const match =
    typeof header === "string" ? /^(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})/.exec(header) : null;
  if (match === null) return null;
  const [, traceId, spanId, flags] = match as unknown as readonly [string, string, string, string];
  if (/^0+$/.test(traceId) || /^0+$/.test(spanId)) return null;
  return { traceId, spanId, sampled: (Number.parseInt(flags, 16) & 1) === 1 };
}

/** The header of a traced request. */
export function formatTraceParent({ traceId, spanId }: TraceContext): string {
  return `00-${traceId}-${spanId}-01`;
}
