import { spawn } from "node:child_process";
import type { TracedRank } from "./trace.ts";

const WIDTH = 1400;
const LEFT = 190;
const TOP = 96;
const LEGEND_COLUMNS = 10;
const LANE = 26;
const NESTED = 16;
const HEAD = 30;
/** What is drawn is the busiest stretch, of this length unless told otherwise: a second of steps would be a solid bar. */
const WINDOW_MS = 24;
/** Finer than this, epoch milliseconds do not tell an end from the next start. */
const CLOCK_STEP_MS = 0.001;
const MOST_RECTANGLES = 20_000;
const PNG_MS = 30_000;

const COLOURS: Readonly<Record<string, string>> = {
  plan: "#8b5fbf",
  "send tokens": "#d9822b",
  "send first token": "#d9822b",
  "send pages": "#c8553d",
  "receive page": "#c8553d",
  step: "#b8c2cc",
  forward: "#8fa3b5",
  project: "#3b7dc4",
  attend: "#2a8f6f",
  route: "#57b0a5",
  "dispatch send": "#d9822b",
  "dispatch receive": "#e8b06e",
  dispatch: "#d9822b",
  experts: "#4f9d3a",
  "combine send": "#c8553d",
  "combine receive": "#e59c8c",
  combine: "#c8553d",
  "dense mlp": "#6f7fd1",
  "join shortcut": "#9db3c8",
  logits: "#b59b2e",
  sample: "#b0487c",
  propose: "#d07fa5",
  embed: "#7a8894",
};
const OTHER = "#9aa5b1";

interface Placed {
  readonly name: string;
  readonly from: number;
  readonly to: number;
  /** How many spans of the same thread it lies within. */
  readonly depth: number;
}

/** Draws the busiest moment: a lane per thread, spans within spans below them. */
export function drawTrace(ranks: readonly TracedRank[], windowMs = WINDOW_MS): string {
  const startMs = busiest(ranks, windowMs);
  const x = (ms: number) => LEFT + ((WIDTH - LEFT - 20) * Math.min(Math.max(ms - startMs, 0), windowMs)) / windowMs;
  const parts: string[] = [];
  let y = TOP;
  for (const { rank, spans } of ranks) {
    const inside = spans.filter((span) => span.startMs < startMs + windowMs && span.startMs + span.ms > startMs);
    parts.push(text(20, y + 20, `${rank.role} ${rank.rankId}, process ${rank.pid}`, "rank"));
    y += HEAD;
    for (const thread of [...new Set(inside.map((span) => span.thread))].sort()) {
      const placed = nest(inside.filter((span) => span.thread === thread));
      const deepest = Math.max(...placed.map(({ depth }) => depth));
      parts.push(text(LEFT - 12, y + 13, thread, "end"));
      for (const { name, from, to, depth } of placed.slice(0, MOST_RECTANGLES))
        parts.push(box(name, x(from), x(to), y + depth * NESTED));
      y += LANE + deepest * NESTED;
    }
    y += 8;
  }
  const height = y + 30;
  const ticks = Array.from({ length: 9 }, (_, i) => (i * windowMs) / 8).map(
    (ms) =>
      `<line class="grid" x1="${x(startMs + ms)}" x2="${x(startMs + ms)}" y1="${TOP}" y2="${y}"/>${text(x(startMs + ms), y + 18, `${Number(ms.toPrecision(4))} ms`, "middle faint")}`,
  );
  const named = [...new Set(ranks.flatMap(({ spans }) => spans.map(({ name }) => name)))].filter(
    (name) => name in COLOURS,
  );
  const legend = named.map((name, i) => {
    const [at, line] = [20 + 130 * (i % LEGEND_COLUMNS), 48 + 18 * Math.floor(i / LEGEND_COLUMNS)];
    return `<rect x="${at}" y="${line}" width="12" height="12" rx="2" fill="${COLOURS[name]}"/>${text(at + 17, line + 10, name, "faint")}`;
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" role="img">`,
    `<style>text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #1f2933 } .title { font-size: 17px; font-weight: 600 }`,
    `.rank { font-weight: 600 } .faint { fill: #5b6673 } .end { text-anchor: end } .middle { text-anchor: middle } .grid { stroke: #d9dee5 }</style>`,
    `<rect width="${WIDTH}" height="${height}" rx="8" fill="#ffffff"/>`,
    text(20, 30, `Steps of ${ranks.length} workers: busiest ${Number(windowMs.toPrecision(4))} ms`, "title"),
    ...legend,
    ...ticks,
    ...parts,
    "</svg>\n",
  ].join("\n");
}

/** Start of the window in which most different things happen, in as many workers as possible. */
function busiest(ranks: readonly TracedRank[], windowMs: number): number {
  const windows = new Map<number, { count: number; readonly kinds: Set<string> }>();
  for (const { rank, spans } of ranks) {
    for (const { name, startMs } of spans) {
      const window = Math.floor((2 * startMs) / windowMs);
      // The half before begins early enough to show it too.
      for (const index of [window - 1, window]) {
        const found = windows.get(index) ?? { count: 0, kinds: new Set() };
        found.count++;
        found.kinds.add(`${rank.rankId} ${name}`);
        windows.set(index, found);
      }
    }
  }
  const order = [...windows].sort(([, a], [, b]) => b.kinds.size - a.kinds.size || b.count - a.count);
  return ((order[0]?.[0] ?? 0) * windowMs) / 2;
}

function nest(spans: TracedRank["spans"]): readonly Placed[] {
  const open: number[] = [];
  return [...spans]
    .sort((a, b) => a.startMs - b.startMs || b.ms - a.ms)
    .map(({ name, startMs, ms }) => {
      while (open.length > 0 && open.at(-1)! <= startMs + CLOCK_STEP_MS) open.pop();
      open.push(startMs + ms);
      return { name, from: startMs, to: startMs + ms, depth: open.length - 1 };
    });
}

function box(name: string, from: number, to: number, y: number): string {
  const width = Math.max(0.6, to - from);
  const rectangle = `<rect x="${from.toFixed(2)}" y="${y}" width="${width.toFixed(2)}" height="${NESTED - 2}" fill="${COLOURS[name] ?? OTHER}"><title>${escapeText(name)}</title></rect>`;
  return width < 8 * name.length ? rectangle : rectangle + text(from + 4, y + 11, name, "");
}

const escapeText = (words: string) => words.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const text = (x: number, y: number, words: string, kind: string) =>
  `<text class="${kind}" x="${x.toFixed(1)}" y="${y}">${escapeText(words)}</text>`;

/** Whether a program that turns the picture into pixels was found and did so. */
export async function pngOf(svg: string, png: string): Promise<boolean> {
  const tools: readonly (readonly [string, readonly string[]])[] = [
    ["rsvg-convert", [svg, "-o", png]],
    ["chromium", ["--headless", "--no-sandbox", `--screenshot=${png}`, `--window-size=${WIDTH},900`, svg]],
  ];
  for (const [program, argv] of tools) {
    const done = await new Promise<boolean>((resolve) => {
      const child = spawn(program, argv, { stdio: "ignore", timeout: PNG_MS });
      child.on("error", () => resolve(false));
      child.on("close", (code) => resolve(code === 0));
    });
    if (done) return true;
  }
  return false;
}
