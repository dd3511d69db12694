/** A row of numbers to be drawn. */
export interface Series {
  readonly name: string;
  readonly points: readonly (readonly [x: number, y: number])[];
  /** Joined in steps, or single dots. */
  readonly as: "steps" | "dots";
}

export interface Chart {
  readonly title: string;
  readonly x: string;
  readonly y: string;
  readonly series: readonly Series[];
}

const SIZE = { width: 720, height: 240, left: 56, right: 150, top: 28, bottom: 40 } as const;
const COLOURS = ["#1f6feb", "#d1495b", "#2e933c", "#edae49", "#6f42c1"] as const;

/** Charts under each other, as one SVG text. */
export function drawCharts(charts: readonly Chart[]): string {
  const height = SIZE.height * charts.length;
  const body = charts.map((chart, i) => `<g transform="translate(0 ${i * SIZE.height})">${drawChart(chart)}</g>`);
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${SIZE.width}" height="${height}" viewBox="0 0 ${SIZE.width} ${height}" font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>\n${body.join("\n")}\n</svg>\n`;
}

function drawChart({ title, x, y, series }: Chart): string {
  const { width, height, left, right, top, bottom } = SIZE;
  const all = series.flatMap(({ points }) => points);
  const [xs, ys] = [scale(all.map(([value]) => value)), scale(all.map(([, value]) => value))];
  const px = (value: number): string => (left + ((width - left - right) * value) / xs.most).toFixed(1);
  const py = (value: number): string => (height - bottom - ((height - top - bottom) * value) / ys.most).toFixed(1);
  const ticks = [
    ...xs.ticks.map((t) => `<text x="${px(t)}" y="${height - bottom + 14}" text-anchor="middle">${t}</text>`),
    ...ys.ticks.map(
      (t) =>
        `<path d="M${left} ${py(t)}H${width - right}" stroke="#ddd"/><text x="${left - 6}" y="${py(t)}" dy="4" text-anchor="end">${t}</text>`,
    ),
  ];
  const lines = series.map(({ points, as }, i) => {
    const colour = COLOURS[i % COLOURS.length]!;
    if (as === "dots") {
      return points.map(([a, b]) => `<circle cx="${px(a)}" cy="${py(b)}" r="3" fill="${colour}"/>`).join("");
    }
    const path = points.map(([a, b], at) => (at === 0 ? `M${px(a)} ${py(b)}` : `H${px(a)}V${py(b)}`)).join("");
    return `<path d="${path}" fill="none" stroke="${colour}"/>`;
  });
  const names = series.map(
    ({ name }, i) =>
      `<text x="${width - right + 10}" y="${top + 12 + 15 * i}" fill="${COLOURS[i % COLOURS.length]}">${escaped(name)}</text>`,
  );
  const labels = [
    `<text x="${left}" y="${top - 12}" font-weight="bold">${escaped(title)}</text>`,
    `<text x="${width - right}" y="${height - 8}" text-anchor="end">${escaped(x)}</text>`,
    `<text x="8" y="${top - 12}">${escaped(y)}</text>`,
  ];
  return [...ticks, ...lines, ...names, ...labels].join("");
}

/** From 0 to a round number above the largest, in about five steps. */
function scale(values: readonly number[]): { readonly most: number; readonly ticks: readonly number[] } {
  const largest = values.reduce((most, value) => Math.max(most, value), 0) || 1;
  const power = 10 ** Math.floor(Math.log10(largest / 4));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one * 5 >= largest) ?? 10 * power;
  const count = Math.ceil(largest / step);
  return { most: count * step, ticks: Array.from({ length: count + 1 }, (_, i) => Number((i * step).toPrecision(6))) };
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
