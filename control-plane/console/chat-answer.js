import { sentenceOf } from "./api.js";
import { element } from "./element.js";
import { counted, time } from "./figures.js";

/**
 * One answer as it comes: its thinking, its text, its tool calls, and what it took.
 *
 *   waiting -> streaming -> done | stopped | failed
 */
export class ChatAnswer {
  #began = performance.now();
  #firstMs = null;
  #usage = null;
  #requestId = null;
  #workers = [];
  #attempts = null;
  #finish = null;
  #calls = [];

  constructor() {
    this.text = "";
    this.thought = "";
    this.waiting = element("p", { class: "waiting", text: "Waiting for the first token" });
    this.thoughtText = element("div", { class: "prose" });
    this.thoughtName = element("summary", { text: "Thinking" });
    this.thinking = element(
      "details",
      { class: "thinking", open: true, hidden: true },
      this.thoughtName,
      this.thoughtText,
    );
    this.prose = element("div", { class: "prose" });
    this.callList = element("div", { class: "calls" });
    this.foot = element("p", { class: "foot" });
    this.node = element(
      "article",
      { class: "turn answer", "aria-label": "Answer" },
      element("h3", { class: "who", text: "Answer" }),
      ...[this.waiting, this.thinking, this.prose, this.callList, this.foot],
    );
  }

  /** What the headers tell before the first token. @param {Headers} headers */
  open(headers) {
    this.#requestId = headers.get("x-request-id");
    this.#workers = [headers.get("x-margay-prefill"), headers.get("x-margay-decode")];
  }

  /** A comment of the stream: how far the workers are, or in the end who worked. @param {string} comment */
  note(comment) {
    const told = /^margay /.test(comment) ? comment.replace(/^margay /, "") : comment;
    if (this.#firstMs === null) this.waiting.textContent = told;
    const attempts = /attempts[=; ]+(\d+)/.exec(told);
    if (attempts !== null) this.#attempts = Number(attempts[1]);
  }

  /** A chunk of the stream. Throws what the server says went wrong. */
  take({ choices = [], usage, error }) {
    if (error !== undefined) throw new Error(error.message);
    if (usage) this.#usage = usage;
    const [choice] = choices;
    if (choice === undefined) return;
    const { content, reasoning_content: reasoning, tool_calls: calls = [] } = choice.delta ?? {};
    if (choice.finish_reason) this.#finish = choice.finish_reason;
    if (!content && !reasoning && calls.length === 0) return;
    this.#firstMs ??= performance.now() - this.#began;
    this.waiting.hidden = true;
    if (reasoning) {
      this.thought += reasoning;
      this.thoughtText.textContent = this.thought.trim();
      this.thinking.hidden = false;
    }
    if (content) {
      if (this.text === "" && this.thought !== "") this.#endThought();
      this.text += content;
      this.prose.textContent = this.text.trim();
    }
    for (const call of calls) this.#takeCall(call);
  }

  /** @param {"done" | "stopped"} how */
  end(how) {
    this.waiting.hidden = true;
    if (this.thought !== "") this.#endThought();
    const totalMs = performance.now() - this.#began;
    const tokens = this.#usage?.completion_tokens ?? null;
    const rate = tokens === null || this.#firstMs === null ? null : (tokens - 1) / ((totalMs - this.#firstMs) / 1000);
    const [prefill, decode] = this.#workers;
    const parts = [
      how === "stopped" ? "stopped" : this.#finish === "length" ? "ended at the most tokens" : null,
      tokens === null ? null : counted(tokens, "token"),
      this.#firstMs === null ? null : `first after ${time(this.#firstMs)}`,
      rate === null || !Number.isFinite(rate) || rate <= 0 ? null : `${rate.toFixed(0)} tokens/s`,
      this.#usage?.prompt_tokens_details?.cached_tokens
        ? `${this.#usage.prompt_tokens_details.cached_tokens} of the prompt cached`
        : null,
      prefill === null ? null : `${prefill} → ${decode}`,
      this.#attempts === null || this.#attempts < 2 ? null : `placed ${this.#attempts} times`,
    ].filter((part) => part !== null && part !== undefined);
    this.foot.replaceChildren(parts.join(" · "), ...this.#link());
  }

  fail(error) {
    this.waiting.hidden = true;
    const told = [
      error.code,
      error.param ? `field ${error.param}` : null,
      error.status ? `status ${error.status}` : null,
    ];
    this.node.insertBefore(
      element(
        "div",
        { class: "failure", role: "alert" },
        element("p", { text: sentenceOf(error) }),
        element("p", { class: "note", text: told.filter(Boolean).join(" · ") }),
      ),
      this.foot,
    );
    this.#requestId ??= error.requestId ?? null;
    this.foot.replaceChildren(...this.#link());
  }

  /** The answer as a message of the conversation. */
  message() {
    return {
      role: "assistant",
      content: this.text === "" && this.#calls.length > 0 ? null : this.text,
      ...(this.#calls.length === 0
        ? {}
        : {
            tool_calls: this.#calls.map(({ id, name, input }) => ({
              id,
              type: "function",
              function: { name, arguments: input },
            })),
          }),
    };
  }

  /** Calls that wait for a result. @returns {readonly {id: string, name: string}[]} */
  get calls() {
    return this.#calls;
  }

  #endThought() {
    if (this.thoughtName.textContent !== "Thinking") return;
    this.thoughtName.textContent = `Thought for ${time(performance.now() - this.#began)}`;
  }

  #takeCall({ index = 0, id, function: called }) {
    this.#calls[index] ??= this.#newCall();
    const call = this.#calls[index];
    if (id) call.id = id;
    if (called?.name) call.name += called.name;
    if (called?.arguments) call.input += called.arguments;
    call.title.textContent = call.name;
    call.shown.textContent = call.input;
  }

  #newCall() {
    const title = element("code", { class: "call-name" });
    const shown = element("pre", { class: "code", tabindex: 0, "aria-label": "Arguments" });
    const node = element("div", { class: "call" }, element("p", {}, "Calls ", title), shown);
    this.callList.append(node);
    return { id: "", name: "", input: "", title, shown, node };
  }

  #link() {
    if (this.#requestId === null) return [];
    const link = element("a", { href: `#/requests/${this.#requestId}`, text: "timeline" });
    return this.foot.childNodes.length === 0 && this.#finish === null ? [link] : [" · ", link];
  }
}
