import { type Figure, verdictOf } from "./native-figures.ts";

const WIDTH = 1000;
const LABELS = 330;
const NUMBERS = 190;
const ROW = 24;
const HEAD = 34;
const TOP = 92;
const BAR = 12;
/** Shares over 1 happen when a limit is measured in a slow moment. */
const MOST = 1.05;

const escapeText = (text: string) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const x = (share: number) => LABELS + (WIDTH - LABELS - NUMBERS) * (Math.min(share, MOST) / MOST);

const STYLE = `
  text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2933 }
  .page { fill: #ffffff } .faint { fill: #5b6673; font-size: 12px } .title { font-size: 18px; font-weight: 600 }
  .table { font-weight: 600 } .end { text-anchor: end } .middle { text-anchor: middle }
  .grid { stroke: #d9dee5 } .limit { stroke: #5b6673; stroke-dasharray: 3 3 }
  .goal { fill: #2a8f6f } .floor { fill: #3b7dc4 } .missed { fill: #c8553d } .plain { fill: #8894a3 }
  .mark { stroke: #1f2933; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6eaef } .page { fill: #14181d } .faint { fill: #9aa5b1 } .grid { stroke: #2b323b }
    .limit { stroke: #9aa5b1 } .mark { stroke: #e6eaef }
  }`;

const LEGEND = [
  ["goal", "goal reached"],
  ["floor", "floor reached"],
  ["missed", "below the floor"],
  ["plain", "nothing promised"],
] as const;

function bar(figure: Figure, y: number): string {
  const share = figure.share[0]!;
  const kind = verdictOf(figure) || "plain";
  const middle = y + ROW / 2;
  const name = `${figure.name}, ${figure.threads} ${figure.threads === 1 ? "thread" : "threads"}`;
  const marks = figure.promise?.of === "share" ? [figure.promise.floor, figure.promise.goal] : [];
  return [
    `<text class="end" x="${LABELS - 10}" y="${middle + 4}">${escapeText(name)}</text>`,
    `<rect class="${kind}" x="${LABELS}" y="${middle - BAR / 2}" width="${x(share) - LABELS}" height="${BAR}" rx="2"/>`,
    ...marks.map((at) => `<line class="mark" x1="${x(at)}" x2="${x(at)}" y1="${middle - 9}" y2="${middle + 9}"/>`),
    `<text x="${WIDTH - NUMBERS + 12}" y="${middle + 4}">${(100 * share).toFixed(0)} %</text>`,
    `<text class="faint" x="${WIDTH - NUMBERS + 62}" y="${middle + 4}">of ${escapeText(figure.limitedBy)}</text>`,
  ].join("\n");
}

/** One picture of how close every operation comes to what the machine allows. */
export function drawShares(figures: readonly Figure[], subtitle: string): string {
  const shown = figures.filter(({ share, disturbed }) => share[0] !== null && !disturbed);
  const parts: string[] = [];
  let y = TOP;
  for (const table of new Set(shown.map((figure) => figure.table))) {
    const own = shown.filter((figure) => figure.table === table);
    const path = [...new Set(own.map((figure) => figure.path))].join(", ");
    parts.push(`<text class="table" x="24" y="${y + 22}">${escapeText(table)} (${escapeText(path)})</text>`);
    y += HEAD;
    for (const figure of own) {
      parts.push(bar(figure, y));
      y += ROW;
    }
  }
  const grid = [0, 0.25, 0.5, 0.75, 1].flatMap((share) => [
    `<line class="${share === 1 ? "limit" : "grid"}" x1="${x(share)}" x2="${x(share)}" y1="${TOP}" y2="${y}"/>`,
    `<text class="faint middle" x="${x(share)}" y="${y + 18}">${100 * share} %</text>`,
  ]);
  const legend = LEGEND.flatMap(([kind, words], i) => [
    `<rect class="${kind}" x="${24 + 150 * i}" y="66" width="12" height="12" rx="2"/>`,
    `<text class="faint" x="${42 + 150 * i}" y="77">${words}</text>`,
  ]);
  const ticks = `<line class="mark" x1="630" x2="630" y1="64" y2="80"/><text class="faint" x="640" y="77">floor and goal</text>`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${y + 34}" width="${WIDTH}" height="${y + 34}" role="img">`,
    `<style>${STYLE}\n</style>`,
    `<rect class="page" width="${WIDTH}" height="${y + 34}" rx="8"/>`,
    `<text class="title" x="24" y="32">Share of the machine's own limit, per operation</text>`,
    `<text class="faint" x="24" y="52">${escapeText(subtitle)}</text>`,
    ...legend,
    ticks,
    ...grid,
    ...parts,
    "</svg>\n",
  ].join("\n");
}
