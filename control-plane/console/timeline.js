import { element } from "./element.js";
import { bytes, count, counted, time } from "./figures.js";

/** What each phase is, for people. */
const PHASES = {
  queue: "waits for its turn and for ranks with room",
  reserve: "D keeps a slot and pages",
  prefill: "P computes the prompt",
  transfer: "the last pages reach D",
  decode: "D produces tokens",
};

/** Everything of one answer of /v1/requests/ID/timeline. @param {any} request @returns {HTMLElement[]} */
export function timelineOf(request) {
  const endMs = Math.max(
    1,
    request.total_ms ?? 0,
    request.first_token_ms ?? 0,
    ...request.attempts.flatMap(({ at_ms: atMs, phases }) => [atMs, ...phases.map((phase) => phase.at_ms + phase.ms)]),
  );
  return [
    element("dl", { class: "facts wide" }, ...headFacts(request)),
    ruler(endMs, request.first_token_ms),
    ...request.attempts.map((attempt, at) => attemptCard(attempt, request, endMs, at)),
  ];
}

function headFacts(request) {
  const facts = [
    ["Outcome", element("span", { class: `outcome ${tone(request.outcome)}`, text: request.outcome })],
    ["Model", request.model],
    ["Came", new Date(request.created * 1000).toLocaleTimeString()],
    ["Prompt", `${counted(request.prompt_tokens, "token")}, ${count(request.cached_tokens)} cached`],
    ["Generated", counted(request.generated_tokens, "token")],
    ["First token", request.first_token_ms === null ? "none yet" : time(request.first_token_ms)],
    ["Total", request.total_ms === null ? "under way" : time(request.total_ms)],
    ["Retries", count(request.retries)],
    ...(request.trace_id === null ? [] : [["Trace", request.trace_id]]),
  ];
  return facts.map(([name, value]) => element("div", {}, element("dt", { text: name }), element("dd", {}, value)));
}

/** How an outcome is to be looked at. */
export function tone(outcome) {
  if (outcome === "ok") return "good";
  return outcome === "running" ? "open" : "bad";
}

function ruler(endMs, firstTokenMs) {
  const stepMs = niceStep(endMs / 6);
  const ticks = Array.from({ length: Math.floor(endMs / stepMs) + 1 }, (_, at) => at * stepMs).map((ms) =>
    placed(element("span", { class: "tick", text: ms === 0 ? "0" : time(ms) }), ms, endMs),
  );
  const first =
    firstTokenMs === null
      ? null
      : placed(element("span", { class: "first-token", text: "first token" }), firstTokenMs, endMs);
  return element(
    "div",
    { class: "lane ruler", "aria-hidden": "true" },
    element("span"),
    element("div", { class: "track" }, ...ticks, first),
    element("span"),
  );
}

function niceStep(ms) {
  const power = 10 ** Math.floor(Math.log10(ms));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= ms);
}

function placed(node, ms, endMs) {
  node.style.left = `${(100 * ms) / endMs}%`;
  return node;
}

function attemptCard(attempt, request, endMs, at) {
  const { prefill, decode, phases, transfer, outcome } = attempt;
  const before = at === 0 ? 0 : request.attempts[at - 1].generated_tokens;
  const gained = Math.max(0, attempt.generated_tokens - before);
  return element(
    "section",
    { class: "card attempt", "aria-labelledby": `attempt-${attempt.attempt}` },
    element(
      "header",
      {},
      element("h2", { id: `attempt-${attempt.attempt}`, text: at === 0 ? "First placement" : `Placement ${at + 1}` }),
      element("span", { class: `outcome ${tone(outcome)}`, text: outcome }),
    ),
    element("ul", { class: "lanes" }, ...phases.map((phase) => lane(phase, prefill, decode, endMs))),
    element("p", { text: choice("P", prefill, request) ?? "P: none; the decode rank computed the prompt itself." }),
    element("p", { text: choice("D", decode, request) ?? "D: none was found." }),
    transfer === null
      ? null
      : element("p", {
          text: `KV: ${counted(transfer.pages, "page")} (${bytes(transfer.bytes)}) arrived in ${time(transfer.ms)}.`,
        }),
    element("p", {
      class: "note",
      text: `${counted(gained, "token")} in this placement${before > 0 ? `, after ${count(before)} that the client had already; none is told twice` : ""}.`,
    }),
  );
}

function lane({ phase, at_ms: atMs, ms }, prefill, decode, endMs) {
  const bar = element("span", { class: `phase ${phase}`, title: PHASES[phase] ?? phase });
  placed(bar, atMs, endMs).style.width = `max(3px, ${(100 * ms) / endMs}%)`;
  const who = phase === "prefill" ? prefill?.rank : phase === "decode" || phase === "reserve" ? decode?.rank : null;
  return element(
    "li",
    { class: "lane" },
    element("span", { class: "lane-name", text: phase }),
    element("div", { class: "track" }, bar),
    element("span", { class: "lane-time", text: time(ms) }),
    element("span", { class: "unseen", text: `${PHASES[phase] ?? ""}, from ${time(atMs)}${who ? `, on ${who}` : ""}` }),
  );
}

function choice(letter, one, request) {
  if (one === null) return null;
  const cached =
    one.cached_tokens === 0
      ? "nothing of the prompt cached"
      : `${count(one.cached_tokens)} of ${counted(request.prompt_tokens, "prompt token")} cached`;
  const waits =
    one.pending_tokens === 0 ? "nothing waited on it" : `${counted(one.pending_tokens, "prompt token")} waited on it`;
  const out = one.out_of === 1 ? "the only one" : `chosen out of ${one.out_of}`;
  return `${letter}: ${one.rank}, ${out}: ${cached}, ${one.requests} of ${one.max_requests} requests, ${waits}.`;
}
