import { apiKey, keepApiKey } from "./api.js";
import { openChat } from "./chat.js";
import { say } from "./element.js";
import { openFleet } from "./fleet.js";
import { openRequests } from "./requests.js";
import { bindTheme } from "./theme.js";
import { openUsage } from "./usage.js";

/**
 * The page: which view is shown, and the key.
 *
 *   #/chat  #/fleet  #/requests  #/requests/ID  #/usage
 *
 * A view is a function that fills the main element and gets a signal which ends with it.
 */
const VIEWS = { chat: openChat, fleet: openFleet, requests: openRequests, usage: openUsage };
const TITLES = { chat: "Chat", fleet: "Fleet", requests: "Requests", usage: "Usage" };

const view = document.querySelector("main");
const dialog = /** @type {HTMLDialogElement} */ (document.querySelector("#key-dialog"));
const input = /** @type {HTMLInputElement} */ (document.querySelector("#key-input"));
let leaving = new AbortController();

function show() {
  const [, name = "", detail = ""] = location.hash.split("/");
  const known = name in VIEWS ? name : "chat";
  leaving.abort();
  leaving = new AbortController();
  document.title = `${TITLES[known]} · Margay`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${known}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  view.className = known;
  view.replaceChildren();
  VIEWS[known](view, leaving.signal, decodeURIComponent(detail));
}

window.addEventListener("hashchange", () => {
  if (!location.hash.startsWith("#/")) return;
  show();
  view.focus({ preventScroll: true });
  say(document.title);
});

function askForKey(why) {
  if (dialog.open) return;
  document.querySelector("#key-why").textContent = why;
  input.value = "";
  dialog.returnValue = "cancel";
  dialog.showModal();
}

window.addEventListener("margay-key-wanted", (event) => askForKey(/** @type {CustomEvent} */ (event).detail));
document.querySelector("#key-button").addEventListener("click", () => {
  askForKey(apiKey() === "" ? "No key is set in this tab." : "This tab has a key. Another one takes its place.");
});
dialog.addEventListener("close", () => {
  if (dialog.returnValue === "use") keepApiKey(input.value.trim());
  else if (dialog.returnValue === "forget") keepApiKey("");
  else return;
  input.value = "";
  show();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  view.focus();
});
bindTheme(document.querySelector("#theme-button"));
show();
