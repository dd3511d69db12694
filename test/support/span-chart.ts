import type { ReceivedSpan } from "./otlp-receiver.ts";

const [WIDTH, NAMES, ROW, TOP] = [1180, 300, 24, 84];
const PLOT = { left: NAMES, right: WIDTH - 100 };
const COLOURS: Readonly<Record<string, string>> = {
  "margay-control-plane": "#7a7165",
  "margay-prefill": "#c2701c",
  "margay-decode": "#0f7f78",
};
const FAILED = "#a8261b";

/** One trace as SVG: a row for each span below the one that it belongs to, links as dashed lines. */
export function spanChart(title: string, spans: readonly ReceivedSpan[]): string {
  const rows = inOrder(spans);
  const startNs = spans.reduce((least, { startNs: at }) => (at < least ? at : least), spans[0]!.startNs);
  const endMs = Math.max(1, ...spans.map(({ endNs }) => msOf(endNs - startNs)));
  const x = (ms: number): number => PLOT.left + (ms / endMs) * (PLOT.right - PLOT.left);
  const height = TOP + rows.length * ROW + 16;
  const rowOf = new Map(rows.map(({ span }, index) => [span.spanId, index]));
  const middle = (id: string): number => TOP + rowOf.get(id)! * ROW + ROW / 2;
  const bars = rows.map(({ span, depth }) => {
    const [from, to] = [x(msOf(span.startNs - startNs)), x(msOf(span.endNs - startNs))];
    const y = middle(span.spanId);
    const colour = span.error === null ? (COLOURS[span.service] ?? "#555") : FAILED;
    const what = span.error === null ? timeOf(msOf(span.endNs - span.startNs)) : span.error;
    return (
      `<text x="${14 + depth * 16}" y="${y + 4}" class="name">${escaped(span.name)}</text>` +
      `<rect class="span" x="${from.toFixed(1)}" y="${y - 7}" width="${Math.max(2.5, to - from).toFixed(1)}" height="14" rx="3" fill="${colour}"/>` +
      `<text x="${(Math.max(to, from + 2.5) + 6).toFixed(1)}" y="${y + 4}" class="time">${escaped(what)}</text>`
    );
  });
  const links = rows.flatMap(({ span }) =>
    span.links
      .filter((id) => rowOf.has(id))
      .map((id) => {
        const linked = rows[rowOf.get(id)!]!.span;
        const [from, to] = [x(msOf(linked.endNs - startNs)), x(msOf(span.startNs - startNs))];
        return `<path class="link" d="M${from.toFixed(1)} ${middle(id) + 7}V${middle(span.spanId) - 7}H${to.toFixed(1)}"/>`;
      }),
  );
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const at = x(share * endMs).toFixed(1);
    return `<line x1="${at}" x2="${at}" y1="${TOP - 8}" y2="${height - 10}" stroke="#e3dccf"/><text x="${at}" y="${TOP - 14}" text-anchor="middle" class="time">${timeOf(share * endMs)}</text>`;
  });
  const keys = [...Object.entries(COLOURS), ["failed", FAILED] as const].map(
    ([name, colour], index) =>
      `<rect x="${NAMES + index * 190}" y="36" width="11" height="11" rx="3" fill="${colour}"/><text x="${NAMES + 17 + index * 190}" y="46" class="time">${name}</text>`,
  );
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" font-family="system-ui, sans-serif">`,
    "<style>.title{font-size:17px;font-weight:650;fill:#221c14}.name{font-size:12.5px;fill:#221c14}.time{font-size:11.5px;fill:#665b4c}.link{fill:none;stroke:#a8261b;stroke-dasharray:4 3}</style>",
    `<rect width="${WIDTH}" height="${height}" fill="#fffdf9"/><text x="14" y="24" class="title">${escaped(title)}</text>`,
    ...[...keys, ...ticks, ...bars, ...links],
    "</svg>\n",
  ].join("");
}

/** Each span after the one that it belongs to, those of one by their start. */
function inOrder(spans: readonly ReceivedSpan[]): readonly { readonly span: ReceivedSpan; readonly depth: number }[] {
  const ids = new Set(spans.map(({ spanId }) => spanId));
  const sorted = [...spans].sort((a, b) => (a.startNs < b.startNs ? -1 : 1));
  const below = (span: ReceivedSpan, depth: number): { span: ReceivedSpan; depth: number }[] => [
    { span, depth },
    ...sorted.filter(({ parentSpanId }) => parentSpanId === span.spanId).flatMap((child) => below(child, depth + 1)),
  ];
  return sorted
    .filter(({ parentSpanId }) => parentSpanId === null || !ids.has(parentSpanId))
    .flatMap((span) => below(span, 0));
}

function msOf(ns: bigint): number {
  return Number(ns) / 1e6;
}

function timeOf(ms: number): string {
  return ms >= 1_000 ? `${(ms / 1_000).toFixed(2)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
