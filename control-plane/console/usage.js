import { ask, askJson, sentenceOf } from "./api.js";
import { element, shape } from "./element.js";
import { count, counted, short, time } from "./figures.js";

const COLUMNS = [
  { name: "Tenant", of: (row) => row.tenant },
  { name: "Model", of: (row) => row.model },
  { name: "Requests", number: (row) => count(row.requests) },
  { name: "Failed", number: (row) => count(row.failed_requests) },
  { name: "Input", number: (row) => count(row.input_tokens) },
  { name: "of it cached", number: (row) => count(row.input_cached_tokens) },
  { name: "Output", number: (row) => count(row.output_tokens) },
  { name: "of it thinking", number: (row) => count(row.reasoning_tokens) },
  { name: "P time", number: (row) => time(row.prefill_gpu_seconds * 1000) },
  { name: "D time", number: (row) => time(row.decode_gpu_seconds * 1000) },
  { name: "Cost", number: (row) => money(row.cost_micros, row.currency) },
];
const SUMMED = [
  ...["requests", "failed_requests", "input_tokens", "input_cached_tokens", "output_tokens", "reasoning_tokens"],
  ...["prefill_gpu_seconds", "decode_gpu_seconds", "cost_micros"],
];

/** Tenants and what they spent: of the key's tenant, or of all with an admin's key. @param {HTMLElement} view @param {AbortSignal} signal */
export function openUsage(view, signal) {
  const today = new Date().toISOString().slice(0, 10);
  const from = element("input", { type: "date", id: "from", value: `${today.slice(0, 8)}01`, max: today });
  const to = element("input", { type: "date", id: "to", value: today, max: today });
  const place = element("div");
  const form = element(
    "form",
    { class: "range" },
    element("div", { class: "field" }, element("label", { for: "from", text: "From" }), from),
    element("div", { class: "field" }, element("label", { for: "to", text: "To" }), to),
    element("button", { type: "submit", text: "Show" }),
    element("button", { type: "button", class: "quiet", text: "Download CSV", onclick: () => void guarded(download) }),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void guarded(show);
  });
  view.append(
    element("h1", { text: "Usage" }),
    element("p", { class: "note", text: "By tenant and model; days are UTC." }),
    form,
    place,
  );
  void guarded(show);

  /** @returns {string} */
  function query() {
    return `v1/usage?${new URLSearchParams({ from: from.value, to: to.value })}`;
  }

  async function show() {
    const { data, currency } = await askJson(query(), signal);
    place.replaceChildren(...(data.length === 0 ? [nothing()] : whole(data, currency)));
  }

  async function download() {
    const answer = await ask(`${query()}&format=csv`, { signal });
    const link = element("a", {
      href: URL.createObjectURL(await answer.blob()),
      download: `usage-${from.value}-${to.value}.csv`,
    });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  async function guarded(action) {
    try {
      await action();
    } catch (error) {
      if (!signal.aborted)
        place.replaceChildren(element("p", { class: "failure", role: "alert", text: sentenceOf(error) }));
    }
  }
}

function nothing() {
  return element("p", {
    class: "card note",
    text: "Nothing was used in these days. Usage is kept where API keys are set.",
  });
}

function whole(rows, currency) {
  const total = sumOf(rows);
  const tile = (name, value, unit) =>
    element(
      "section",
      { class: "tile" },
      element("h2", { text: name }),
      element("p", { class: "figure" }, element("strong", { text: value }), ` ${unit}`),
    );
  return [
    element(
      "div",
      { class: "tiles" },
      tile("Spent", money(total.cost_micros, ""), currency),
      tile(
        "Requests",
        count(total.requests),
        total.failed_requests > 0 ? `${count(total.failed_requests)} failed` : "",
      ),
      tile("Input", short(total.input_tokens), "tokens"),
      tile("Output", short(total.output_tokens), "tokens"),
    ),
    days(rows),
    table(rows),
  ];
}

function money(micros, currency) {
  return `${(micros / 1e6).toFixed(micros < 1e6 && micros > 0 ? 4 : 2)} ${currency}`.trim();
}

/** @returns {Record<string, any>} */
function sumOf(rows) {
  return Object.fromEntries(SUMMED.map((name) => [name, rows.reduce((sum, row) => sum + row[name], 0)]));
}

function grouped(rows, keyOf) {
  const groups = new Map();
  for (const row of rows) groups.set(keyOf(row), [...(groups.get(keyOf(row)) ?? []), row]);
  return groups;
}

/** A bar a day: tokens in and out. */
function days(rows) {
  /** @type {Record<string, any>[]} */
  const sums = [...grouped(rows, ({ day }) => day)]
    .map(([day, ofDay]) => ({ ...sumOf(ofDay), day }))
    .sort((a, b) => (a.day < b.day ? -1 : 1));
  const most = Math.max(1, ...sums.map((one) => one.input_tokens + one.output_tokens));
  const [width, height, slot] = [sums.length * 26, 120, 26];
  const bars = sums.flatMap((one, at) => {
    const input = (one.input_tokens / most) * height;
    const output = (one.output_tokens / most) * height;
    const x = at * slot + 4;
    return [
      shape("rect", { class: "bar input", x, y: height - input, width: 18, height: input, rx: 2 }),
      shape("rect", { class: "bar output", x, y: height - input - output, width: 18, height: output, rx: 2 }),
    ];
  });
  const words = sums.map((one) => `${one.day}: ${counted(one.input_tokens + one.output_tokens, "token")}`).join("; ");
  return element(
    "figure",
    { class: "card days" },
    element(
      "figcaption",
      {},
      "Tokens a day ",
      element("span", { class: "key input", text: "input" }),
      element("span", { class: "key output", text: "output" }),
    ),
    shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": words }, ...bars),
    element("p", { class: "note", text: sums.length === 1 ? sums[0].day : `${sums[0].day} to ${sums.at(-1).day}` }),
  );
}

function table(rows) {
  /** @type {Record<string, any>[]} */
  const sums = [...grouped(rows, ({ tenant, model }) => JSON.stringify([tenant, model])).values()]
    .map(summed)
    .sort((a, b) => b.cost_micros - a.cost_micros || b.output_tokens - a.output_tokens);
  const head = COLUMNS.map(({ name, number }) =>
    element("th", { scope: "col", class: number ? "number" : null, text: name }),
  );
  const cell = (row) => (column) =>
    element("td", { class: column.number ? "number" : null, text: (column.number ?? column.of)(row) });
  return element(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Usage by tenant and model" },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...sums.map((row) => element("tr", {}, ...COLUMNS.map(cell(row))))),
    ),
  );
}

/** Rows of one tenant and model as one. @returns {Record<string, any>} */
function summed(group) {
  return { ...sumOf(group), tenant: group[0].tenant, model: group[0].model, currency: group[0].currency };
}
