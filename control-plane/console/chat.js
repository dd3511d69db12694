import { ask } from "./api.js";
import { ChatAnswer } from "./chat-answer.js";
import { ChatSettings } from "./chat-settings.js";
import { element, say } from "./element.js";
import { eventsOf } from "./event-stream.js";

const EXAMPLES = [
  { text: "What is 47 + 38?", tools: false },
  { text: "Tell me a story about a fox.", tools: false },
  { text: "How is the weather in Rome today?", tools: true },
];

/**
 * The conversation outlives the view: going to another page and back loses nothing.
 *
 * @type {Chat | null}
 */
let chat = null;

/** @param {HTMLElement} view @param {AbortSignal} signal */
export function openChat(view, signal) {
  chat ??= new Chat();
  view.append(chat.node);
  chat.settings.loadModels(signal).catch((error) => {
    // A key that is lacking is asked for by the page.
    if (!signal.aborted && error.status !== 401) chat.complain(error);
  });
  chat.scroll();
}

/** A conversation: its messages, the answer under way, and the form for the next question. */
class Chat {
  /** @type {any[]} */
  #messages = [];
  /** @type {AbortController | null} */
  #running = null;
  #log = element("div", { class: "log", role: "log", "aria-label": "Conversation", "aria-live": "off", tabindex: 0 });
  #input = element("textarea", { id: "question", rows: 2, placeholder: "Ask something" });
  #send = element("button", { type: "submit", class: "strong", text: "Send" });
  #stop = element("button", { type: "button", text: "Stop", hidden: true });
  #clear = element("button", { type: "button", class: "quiet", text: "New conversation" });

  constructor() {
    this.settings = new ChatSettings();
    const form = element(
      "form",
      { class: "ask" },
      element("label", { for: "question", class: "unseen", text: "Your message" }),
      this.#input,
      element("div", { class: "buttons" }, this.#send, this.#stop, this.#clear),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#question();
    });
    this.#input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#question();
      }
    });
    this.#stop.addEventListener("click", () => this.#running?.abort());
    this.#clear.addEventListener("click", () => this.#forget());
    this.node = element(
      "div",
      { class: "chat-columns" },
      element(
        "section",
        { class: "talk", "aria-labelledby": "talk-title" },
        element("h1", { id: "talk-title", class: "unseen", text: "Chat" }),
        this.#log,
        form,
      ),
      this.settings.form,
    );
    this.node.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#running?.abort();
    });
    this.#invite();
  }

  scroll() {
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  complain(error) {
    const answer = new ChatAnswer();
    answer.fail(error);
    this.#log.append(answer.node);
    this.scroll();
  }

  #invite() {
    const examples = EXAMPLES.map(({ text, tools }) =>
      element("button", {
        type: "button",
        text,
        onclick: () => {
          if (tools) this.settings.useTools.checked = true;
          this.#input.value = text;
          this.#input.focus();
        },
      }),
    );
    this.#log.append(
      element(
        "div",
        { class: "invitation" },
        element("p", { class: "large", text: "Ask the model." }),
        element("p", {
          class: "note",
          text: "Enter sends, Shift and Enter begin a new line, Escape stops. Thinking and tool calls are shown as they come.",
        }),
        element("div", { class: "buttons" }, ...examples),
      ),
    );
  }

  #forget() {
    this.#running?.abort();
    this.#messages = [];
    this.#log.replaceChildren();
    this.#invite();
    this.#input.focus();
  }

  #question() {
    const content = this.#input.value.trim();
    if (content === "" || this.#running !== null) return;
    this.#input.value = "";
    this.#log.querySelector(".invitation")?.remove();
    this.#log.append(
      element(
        "article",
        { class: "turn question", "aria-label": "Question" },
        element("h3", { class: "who", text: "You" }),
        element("div", { class: "prose", text: content }),
      ),
    );
    void this.#answer([{ role: "user", content }]);
  }

  /** @param {{role: string, content: string, tool_call_id?: string}[]} added messages that ask; where there is no answer, they are taken back */
  async #answer(added) {
    const answer = new ChatAnswer();
    const running = new AbortController();
    this.#running = running;
    this.#messages.push(...added);
    this.#busy(true);
    this.#log.append(answer.node);
    this.scroll();
    try {
      const response = await ask("v1/chat/completions", {
        signal: running.signal,
        body: {
          ...this.settings.fields(),
          messages: [...this.settings.systemMessages(), ...this.#messages],
          stream: true,
          stream_options: { include_usage: true },
        },
      });
      answer.open(response.headers);
      await this.#follow(answer, response.body);
      answer.end("done");
      this.#messages.push(answer.message());
      if (answer.calls.length > 0) this.#askForResults(answer.calls);
      say(answer.text === "" ? "The model calls a tool." : `Answer: ${answer.text}`);
    } catch (error) {
      if (running.signal.aborted) {
        answer.end("stopped");
        this.#messages.push({ role: "assistant", content: answer.text });
        say("Stopped.");
      } else {
        answer.fail(error);
        this.#messages.splice(-added.length);
        if (added[0].role === "user" && this.#input.value === "") this.#input.value = added[0].content;
      }
    } finally {
      this.#running = null;
      this.#busy(false);
    }
  }

  async #follow(answer, body) {
    for await (const { data, comment } of eventsOf(body)) {
      const atEnd = this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight < 40;
      if (comment !== undefined) answer.note(comment);
      else if (data !== "[DONE]") answer.take(JSON.parse(data));
      if (atEnd) this.scroll();
    }
  }

  /** A form for what the tools say; the conversation goes on with it. */
  #askForResults(calls) {
    const fields = calls.map(({ id, name }, at) => {
      const input = element("input", { id: `result-${this.#messages.length}-${at}`, autocomplete: "off" });
      return {
        id,
        input,
        row: element("div", { class: "field" }, element("label", { for: input.id, text: `Result of ${name}` }), input),
      };
    });
    const form = element(
      "form",
      { class: "results" },
      ...fields.map(({ row }) => row),
      element("button", { type: "submit", text: "Give the result" }),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running !== null) return;
      for (const { input } of fields) input.disabled = true;
      form.querySelector("button").remove();
      void this.#answer(fields.map(({ id, input }) => ({ role: "tool", tool_call_id: id, content: input.value })));
    });
    this.#log.append(form);
    this.scroll();
  }

  #busy(busy) {
    this.#send.hidden = busy;
    this.#stop.hidden = !busy;
    if (!busy && document.activeElement === document.body) this.#input.focus();
  }
}
