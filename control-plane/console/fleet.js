import { askJson, sentenceOf } from "./api.js";
import { element, shape } from "./element.js";
import { bytes, count, counted, short, time } from "./figures.js";
import { FleetRates } from "./fleet-rates.js";
import { pageLegend, pageMap, pagesInWords } from "./page-map.js";

const ASK_MS = 1_000;
const ASK_AGAIN_MS = 4_000;
/** Models whose reasons are open: the picture is drawn anew each second. */
const opened = new Set();
const ROLES = { prefill: "Prefill", decode: "Decode" };

/** The fleet as it is, asked for once a second while somebody looks. @param {HTMLElement} view @param {AbortSignal} signal */
export function openFleet(view, signal) {
  const rates = new FleetRates();
  const place = element("div", { class: "fleet-body" });
  const trouble = element("p", { class: "failure", role: "alert", hidden: true });
  view.append(element("h1", { text: "Fleet" }), trouble, place);
  place.append(element("p", { class: "note", text: "Asking for the fleet." }));
  void follow();

  async function follow() {
    while (!signal.aborted) {
      let pauseMs = ASK_MS;
      try {
        if (!document.hidden) {
          const fleet = await askJson("v1/fleet", AbortSignal.any([signal, AbortSignal.timeout(10_000)]));
          rates.add(fleet, performance.now());
          trouble.hidden = true;
          const focused = place.contains(document.activeElement) ? document.activeElement.id : "";
          place.replaceChildren(...picture(fleet, rates));
          if (focused !== "") document.getElementById(focused)?.focus();
        }
      } catch (error) {
        if (signal.aborted) return;
        trouble.textContent = sentenceOf(error);
        trouble.hidden = false;
        // A refusal does not change by asking.
        if (error.status === 401 || error.status === 403) return place.replaceChildren();
        pauseMs = ASK_AGAIN_MS;
      }
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
    }
  }
}

function picture(fleet, rates) {
  const { models, ranks } = fleet;
  const more = fleet.ranks_total - ranks.length;
  return [
    element("p", { class: "note", text: `${fleet.gateway}, up for ${time(fleet.up_ms)}` }),
    element(
      "div",
      { class: "tiles" },
      tile("Waiting", count(rates.lines.waiting.at(-1)), "requests", rates.lines.waiting, "queue"),
      tile("Prompt tokens", short(rates.lines.prompt.at(-1)), "a second", rates.lines.prompt, "prefill"),
      tile("KV moved", bytes(rates.lines.moved.at(-1)), "a second", rates.lines.moved, "moved"),
      tile("Tokens", short(rates.lines.tokens.at(-1)), "a second", rates.lines.tokens, "decode"),
    ),
    element("div", { class: "starts" }, ...models.map(modelCard)),
    element(
      "div",
      { class: "roles" },
      ...Object.keys(ROLES).map((role) =>
        column(
          role,
          ranks.filter((rank) => rank.role === role),
          rates,
        ),
      ),
    ),
    more > 0 ? element("p", { class: "note", text: `${count(more)} more ranks are not shown.` }) : null,
    pageLegend(),
  ].filter((part) => part !== null);
}

function tile(name, value, unit, points, kind) {
  return element(
    "section",
    { class: `tile ${kind}` },
    element("h2", { text: name }),
    element("p", { class: "figure" }, element("strong", { text: value }), ` ${unit}`),
    line(points),
  );
}

/** The last minute and a half, without axes: what matters is whether it rises. */
function line(points) {
  const [width, height] = [180, 34];
  const most = Math.max(1, ...points);
  const x = (at) => width - (points.length - 1 - at) * (width / 89);
  const y = (value) => height - 1 - (value / most) * (height - 4);
  const path = points.map((value, at) => `${at === 0 ? "M" : "L"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  return shape(
    "svg",
    { class: "line", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    shape("path", { class: "area", d: `${path}L${width} ${height}L${x(0).toFixed(1)} ${height}Z` }),
    shape("path", { class: "stroke", d: path }),
  );
}

function modelCard({ name, waiting, running, roles, failure, decisions }) {
  return element(
    "section",
    { class: "card model" },
    element(
      "h2",
      {},
      name,
      element("span", { class: "note", text: ` ${count(running)} running, ${count(waiting)} waiting` }),
    ),
    ...roles.map(starting),
    failure === null ? null : element("p", { class: "failure", text: failure }),
    decisions.length === 0
      ? null
      : element(
          "details",
          { open: opened.has(name), ontoggle: (event) => (event.target.open ? opened.add(name) : opened.delete(name)) },
          element("summary", { id: `why-${name}`, text: "Why there are as many workers" }),
          element("ul", { class: "plain" }, ...decisions.map(decision)),
        ),
  );
}

function starting({ role, wanted, started, ready, phase, share, left_ms: leftMs }) {
  const left = leftMs === null || leftMs < 500 ? "" : `, about ${time(leftMs)} more`;
  const words =
    phase === "ready"
      ? `${ready} of ${wanted} ready`
      : `${ready} of ${wanted} ready, ${started} started; ${phase}${left}`;
  const bar = element("progress", {
    max: 1,
    "aria-label": `Start of ${role} workers`,
    ...(share === null ? {} : { value: share }),
  });
  return element(
    "p",
    { class: `start ${role}` },
    element("span", { class: "role-name", text: ROLES[role] }),
    element("span", { text: words }),
    phase === "ready" ? null : bar,
  );
}

function decision({ ago_ms: agoMs, role, from, to, reason }) {
  return element("li", { text: `${role} ${from} → ${to}, ${time(agoMs)} ago: ${reason}` });
}

function column(role, ranks, rates) {
  return element(
    "section",
    { class: `column ${role}`, "aria-labelledby": `${role}-title` },
    element(
      "h2",
      { id: `${role}-title` },
      ROLES[role],
      element("span", { class: "note", text: ` ${counted(ranks.length, "rank")}` }),
    ),
    ...(ranks.length === 0
      ? [element("p", { class: "card note", text: "None runs. They start with the next request." })]
      : ranks.map((rank) => rankCard(rank, rates.of(rank.rank)))),
  );
}

function rankCard(rank, { promptPerSecond, tokensPerSecond, bytesPerSecond, batch, busy }) {
  const prefill = rank.role === "prefill";
  return element(
    "article",
    { class: `card rank ${rank.state}`, "aria-label": rank.rank },
    element(
      "header",
      {},
      element("h3", { text: rank.rank }),
      element("span", { class: `state ${rank.state}`, text: rank.state }),
    ),
    element(
      "dl",
      { class: "facts" },
      ...fact("Requests", `${count(rank.requests)} of ${count(rank.max_requests)}`),
      ...fact(prefill ? "Rows a step" : "Streams a step", short(batch)),
      ...fact(prefill ? "Prompt tokens/s" : "Tokens/s", short(prefill ? promptPerSecond : tokensPerSecond)),
      ...fact(prefill ? "Sends" : "Receives", `${bytes(bytesPerSecond)}/s`),
      ...fact("Busy", `${Math.round(busy * 100)} %`),
      ...(rank.pending_prompt_tokens > 0 ? fact("Prompt tokens left", count(rank.pending_prompt_tokens)) : []),
      ...(rank.silent_ms > 2_000 ? fact("Silent for", time(rank.silent_ms)) : []),
    ),
    pageMap(rank.pages),
    element("p", { class: "note", "aria-hidden": "true", text: pagesInWords(rank.pages).replace("Pages: ", "") }),
  );
}

function fact(name, value) {
  return [element("div", {}, element("dt", { text: name }), element("dd", { text: value }))];
}
