import type { TraceContext } from "#protocol/trace-context.ts";

export type Attribute = string | number | boolean | readonly string[];

/** A finished span. Times are epoch milliseconds, with fractions. */
export interface Span extends TraceContext {
  /** null: the first of its trace. */
  readonly parentId: string | null;
  readonly name: string;
  readonly kind: "server" | "internal" | "client";
  readonly startMs: number;
  readonly endMs: number;
  /** Never text of a prompt or an answer. */
  readonly attributes: Readonly<Record<string, Attribute | null>>;
  readonly events?: readonly SpanEvent[];
  /** Spans that this one goes on from. */
  readonly links?: readonly TraceContext[];
  /** Code of the failure that ended it. */
  readonly error?: string | null;
}

export interface SpanEvent {
  readonly name: string;
  readonly atMs: number;
  readonly attributes: Readonly<Record<string, Attribute | null>>;
}

const KINDS = { internal: 1, server: 2, client: 3 } as const;
const STATUS_ERROR = 2;

/** Spans of one process as OTLP's JSON form has them (ExportTraceServiceRequest). */
export function otlpRequest(resource: Readonly<Record<string, Attribute>>, spans: readonly Span[]): object {
  return {
    resourceSpans: [
      {
        resource: { attributes: keyValues(resource) },
        scopeSpans: [{ scope: { name: "margay" }, spans: spans.map(otlpSpan) }],
      },
    ],
  };
}

function otlpSpan(span: Span): object {
  return {
    traceId: span.traceId,
    spanId: span.spanId,
    ...(span.parentId === null ? {} : { parentSpanId: span.parentId }),
    name: span.name,
    kind: KINDS[span.kind],
    startTimeUnixNano: nanoseconds(span.startMs),
    endTimeUnixNano: nanoseconds(Math.max(span.startMs, span.endMs)),
    attributes: keyValues(span.attributes),
    events: (span.events ?? []).map(({ name, atMs, attributes }) => ({
      name,
      timeUnixNano: nanoseconds(atMs),
      attributes: keyValues(attributes),
    })),
    links: (span.links ?? []).map(({ traceId, spanId }) => ({ traceId, spanId })),
    status: span.error == null ? {} : { code: STATUS_ERROR, message: span.error },
  };
}

/** Unset ones are left out. */
function keyValues(attributes: Readonly<Record<string, Attribute | null>>): object[] {
  return Object.entries(attributes).flatMap(([key, value]) =>
    value === null ? [] : [{ key, value: anyValue(value) }],
  );
}

function anyValue(value: Attribute): object {
  if (typeof value === "string") return { stringValue: value };
  if (typeof value === "boolean") return { boolValue: value };
  if (typeof value === "number") return Number.isInteger(value) ? { intValue: String(value) } : { doubleValue: value };
  return { arrayValue: { values: value.map((one) => ({ stringValue: one })) } };
}

/** 64 bits as text: JSON's numbers have 53. */
function nanoseconds(ms: number): string {
  return String(BigInt(Math.round(ms * 1000)) * 1000n);
}
