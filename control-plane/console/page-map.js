import { element, shape } from "./element.js";
import { count } from "./figures.js";

/** States of KV pages: those in which they hold something first, as they follow each other. */
export const PAGE_STATES = ["attached", "sealed", "sending", "receiving", "filling", "reserved", "cached", "free"];

const COLUMNS = 32;
const MOST_ROWS = 5;
const CELL = 8;
const GAP = 2;

/**
 * A pool drawn as cells, each for one page or, of a large pool, for an equal share of it.
 *
 * @param {Record<string, number>} pages pages by state
 * @returns {SVGElement}
 */
export function pageMap(pages) {
  const total = PAGE_STATES.reduce((sum, state) => sum + pages[state], 0);
  const cells = Math.min(total, COLUMNS * MOST_ROWS);
  const rows = Math.max(1, Math.ceil(cells / COLUMNS));
  const states = cellsOf(pages, total, cells);
  const step = CELL + GAP;
  return shape(
    "svg",
    {
      class: "page-map",
      viewBox: `0 0 ${COLUMNS * step - GAP} ${rows * step - GAP}`,
      role: "img",
      "aria-label": pagesInWords(pages),
    },
    ...states.map((state, at) =>
      shape("rect", {
        class: `page ${state}`,
        x: (at % COLUMNS) * step,
        y: Math.floor(at / COLUMNS) * step,
        ...{ width: CELL, height: CELL, rx: 2 },
      }),
    ),
  );
}

/** Shares by largest remainders; a state that some page is in has a cell. */
export function cellsOf(pages, total, cells) {
  if (total === 0) return [];
  const wanted = PAGE_STATES.map((state) => ({ state, exact: (pages[state] * cells) / total }));
  const shares = wanted.map(({ state, exact }) => ({
    state,
    exact,
    n: exact > 0 ? Math.max(1, Math.floor(exact)) : 0,
  }));
  let left = cells - shares.reduce((sum, { n }) => sum + n, 0);
  const order = [...shares].sort((a, b) => b.exact - b.n - (a.exact - a.n));
  for (let at = 0; left > 0; at++, left--) order[at % order.length].n++;
  for (; left < 0; left++) [...shares].sort((a, b) => b.n - a.n)[0].n--;
  return shares.flatMap(({ state, n }) => Array(n).fill(state));
}

export function pagesInWords(pages) {
  const parts = PAGE_STATES.filter((state) => pages[state] > 0).map((state) => `${count(pages[state])} ${state}`);
  return `Pages: ${parts.join(", ")}`;
}

/** What the colours mean. */
export function pageLegend() {
  const items = PAGE_STATES.map((state) =>
    element(
      "li",
      {},
      shape(
        "svg",
        { viewBox: "0 0 10 10", width: 10, height: 10, "aria-hidden": "true" },
        shape("rect", { class: `page ${state}`, width: 10, height: 10, rx: 2.5 }),
      ),
      state,
    ),
  );
  return element("ul", { class: "legend", "aria-label": "States of pages" }, ...items);
}
