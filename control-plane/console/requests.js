import { askJson, sentenceOf } from "./api.js";
import { element } from "./element.js";
import { count, time } from "./figures.js";
import { timelineOf, tone } from "./timeline.js";

const ASK_MS = 2_000;

/** The latest requests, or one of them. @param {HTMLElement} view @param {AbortSignal} signal @param {string} id empty: the list */
export function openRequests(view, signal, id) {
  if (id === "") openList(view, signal);
  else openOne(view, signal, id);
}

function openList(view, signal) {
  const place = element("div");
  view.append(
    element("h1", { text: "Requests" }),
    element("p", { class: "note", text: "Your latest ones at the gateway that answers here. One opens its timeline." }),
    place,
  );
  void repeat(signal, place, async () => {
    const { data } = await askJson("v1/requests?limit=50", signal);
    // Nobody's place in the table is taken away.
    if (!place.contains(document.activeElement)) place.replaceChildren(table(data));
    return true;
  });
}

function openOne(view, signal, id) {
  const place = element("div", { class: "timeline" });
  view.append(
    element("p", {}, element("a", { href: "#/requests", text: "All requests" })),
    element("h1", { class: "id", text: id }),
    place,
  );
  void repeat(signal, place, async () => {
    const request = await askJson(`v1/requests/${encodeURIComponent(id)}/timeline`, signal);
    place.replaceChildren(...timelineOf(request));
    return request.outcome === "running";
  });
}

/** Again and again while `turn` says so; a failure is shown and ends it. */
async function repeat(signal, place, turn) {
  try {
    while (!signal.aborted && (document.hidden || (await turn()))) {
      await new Promise((resolve) => setTimeout(resolve, ASK_MS));
    }
  } catch (error) {
    if (!signal.aborted)
      place.replaceChildren(element("p", { class: "failure", role: "alert", text: sentenceOf(error) }));
  }
}

function table(requests) {
  if (requests.length === 0) return element("p", { class: "card note", text: "None yet. Ask something in the chat." });
  const names = ["Came", "Request", "Model", "Outcome", "Prompt", "Generated", "Total", "Retries"];
  return element(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Latest requests" },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...names.map((text) => element("th", { scope: "col", text })))),
      element("tbody", {}, ...requests.map(row)),
    ),
  );
}

function row(request) {
  return element(
    "tr",
    {},
    element("td", { text: new Date(request.created * 1000).toLocaleTimeString() }),
    element("td", {}, element("a", { href: `#/requests/${request.id}`, text: request.id })),
    element("td", { text: request.model }),
    element("td", {}, element("span", { class: `outcome ${tone(request.outcome)}`, text: request.outcome })),
    element("td", { class: "number", text: count(request.prompt_tokens) }),
    element("td", { class: "number", text: count(request.generated_tokens) }),
    element("td", { class: "number", text: request.total_ms === null ? "" : time(request.total_ms) }),
    element("td", { class: "number", text: count(request.retries) }),
  );
}
