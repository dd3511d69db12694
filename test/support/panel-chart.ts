import type { Panel, PanelUnit } from "../../control-plane/monitoring/board.ts";
import type { RangeSeries } from "./prometheus-server.ts";

/** A line of a panel: its name, and its points as [epoch seconds, value]. */
export interface PanelLine {
  readonly name: string;
  readonly points: readonly (readonly [number, number])[];
}

const [WIDTH, HEIGHT] = [460, 250];
const PLOT = { left: 66, right: WIDTH - 12, top: 34, bottom: 178 };
const MOST_NAMED = 8;
/** Points further apart have something unknown between them. */
const MOST_GAP_SECONDS = 4;
const COLOURS = [
  ...["#0f7f78", "#c2701c", "#8a55a8", "#4b7fd0", "#5f9e3f", "#a8261b", "#7a7165", "#b59b2e"],
  ...["#2f5f8f", "#c25a86", "#3f9fb0", "#8d6a3b"],
];

/** Lines of a query, named as Grafana would: `{{label}}` filled in. */
export function linesOf(legend: string, series: readonly RangeSeries[]): readonly PanelLine[] {
  return series.map(({ labels, points }) => ({
    name: legend.replace(/\{\{(\w+)\}\}/g, (_, label: string) => labels[label] ?? ""),
    points: points.filter(([, value]) => Number.isFinite(value)),
  }));
}

/** A panel as SVG: axes in its unit, a line or a layer for each series, the names below. */
export function panelChart(
  { title, unit, stacked }: Panel,
  lines: readonly PanelLine[],
  range: readonly [number, number],
): string {
  const shown = lines
    .filter(({ points }) => points.length > 0)
    .map((line) => ({ ...line, most: Math.max(...line.points.map(([, value]) => value)) }))
    .sort((a, b) => b.most - a.most);
  const layers = stacked ? layered(shown) : shown.map(({ name, points }) => ({ name, points, floor: null }));
  const most = Math.max(...layers.flatMap(({ points }) => points.map(([, value]) => value)), 0);
  const top = niceTop(most, unit);
  const x = (at: number): number => PLOT.left + ((at - range[0]) / (range[1] - range[0])) * (PLOT.right - PLOT.left);
  const y = (value: number): number => PLOT.bottom - (value / top) * (PLOT.bottom - PLOT.top);
  const path = (points: PanelLine["points"]): string =>
    points
      .map(([at, value], index) => {
        // What was not measured is not drawn.
        const begins = index === 0 || at - points[index - 1]![0] > MOST_GAP_SECONDS;
        return `${begins ? "M" : "L"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      })
      .join("");
  const drawn = layers.map(({ points, floor }, index) => {
    const colour = COLOURS[index % COLOURS.length]!;
    const line = `<path d="${path(points)}" fill="none" stroke="${colour}" stroke-width="1.7"/>`;
    if (floor === null) return line;
    const layer = points.map(([at, value], step) => {
      const [, below] = floor[step]!;
      const next = points[step + 1];
      if (next === undefined || next[0] - at > MOST_GAP_SECONDS) return "";
      const [, nextBelow] = floor[step + 1]!;
      return `M${x(at).toFixed(1)} ${y(value).toFixed(1)}L${x(next[0]).toFixed(1)} ${y(next[1]).toFixed(1)}L${x(next[0]).toFixed(1)} ${y(nextBelow).toFixed(1)}L${x(at).toFixed(1)} ${y(below).toFixed(1)}Z`;
    });
    return `<path d="${layer.join("")}" fill="${colour}" fill-opacity=".35"/>${line}`;
  });
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const at = y(share * top);
    return (
      `<line x1="${PLOT.left}" x2="${PLOT.right}" y1="${at}" y2="${at}" stroke="#e3dccf"/>` +
      `<text x="${PLOT.left - 6}" y="${at + 3.5}" text-anchor="end" class="tick">${inUnit(share * top, unit)}</text>`
    );
  });
  const seconds = Math.round(range[1] - range[0]);
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" rx="8" fill="#fffdf9" stroke="#ddd5c6"/>`,
    `<text x="12" y="21" class="title"${title.length > 48 ? ' style="font-size:11.5px"' : ""}>${escaped(title)}</text>`,
    ...ticks,
    `<text x="${PLOT.left}" y="${PLOT.bottom + 14}" class="tick">${seconds} s ago</text>`,
    `<text x="${PLOT.right}" y="${PLOT.bottom + 14}" text-anchor="end" class="tick">now</text>`,
    ...drawn,
    shown.length === 0 ? `<text x="${WIDTH / 2}" y="110" text-anchor="middle" class="none">no data</text>` : "",
    ...names(shown),
    "</svg>",
  ].join("");
}

/** Each series on top of those before it. */
function layered(lines: readonly PanelLine[]) {
  const below = new Map<number, number>();
  return lines.map(({ name, points }) => {
    const floor = points.map(([at]) => [at, below.get(at) ?? 0] as const);
    const raised = points.map(([at, value]) => [at, value + (below.get(at) ?? 0)] as const);
    for (const [at, value] of raised) below.set(at, value);
    return { name, points: raised, floor };
  });
}

/** Those that stand out by name; the others, and those that are nought throughout, by number. */
function names(lines: readonly (PanelLine & { readonly most: number })[]): readonly string[] {
  const zero = lines.filter(({ most }) => most === 0).length;
  const named = lines
    .filter(({ most }, index) => index < MOST_NAMED && (most > 0 || zero <= 3))
    .map(({ name }) => name);
  const more = lines.length - named.length;
  return [...named, ...(more > 0 ? [more === zero ? `${more} at nought` : `${more} more`] : [])].map((name, index) => {
    const [left, top] = [14 + (index % 3) * 148, PLOT.bottom + 32 + Math.floor(index / 3) * 15];
    const short = name.length > 20 ? `${name.slice(0, 19)}…` : name;
    const mark =
      index < named.length
        ? `<rect x="${left}" y="${top - 8}" width="9" height="9" rx="2" fill="${COLOURS[index]}"/>`
        : "";
    return `${mark}<text x="${left + 14}" y="${top}" class="name">${escaped(short)}</text>`;
  });
}

/** A round number of the unit's own kind, at or above `most`. */
function niceTop(most: number, unit: PanelUnit): number {
  if (most <= 0) return 1;
  const base =
    unit === "bytes" || unit === "Bps" ? 1024 ** Math.floor(Math.log(Math.max(1, most)) / Math.log(1024)) : 1;
  const power = 10 ** Math.floor(Math.log10(most / base));
  return base * power * [1, 2, 2.4, 4, 6, 8, 10, 20].find((factor) => factor * power * base >= most)!;
}

function inUnit(value: number, unit: PanelUnit): string {
  const short = (number: number): string => String(Number(number.toPrecision(3)));
  if (unit === "percentunit") return `${short(value * 100)} %`;
  if (unit === "s") return value >= 1 || value === 0 ? `${short(value)} s` : `${short(value * 1000)} ms`;
  if (unit === "bytes" || unit === "Bps") {
    const end = unit === "Bps" ? "/s" : "";
    for (const [size, name] of [
      [2 ** 30, "GiB"],
      [2 ** 20, "MiB"],
      [2 ** 10, "KiB"],
    ] as const)
      if (value >= size) return `${short(value / size)} ${name}${end}`;
    return `${short(value)} B${end}`;
  }
  const scaled = value >= 1e6 ? `${short(value / 1e6)} M` : value >= 1e4 ? `${short(value / 1e3)} k` : short(value);
  return unit === "reqps" || unit === "ops" ? `${scaled}/s` : scaled;
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
