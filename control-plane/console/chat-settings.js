import { askJson } from "./api.js";
import { element } from "./element.js";

const WEATHER = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Current weather of a city",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];

const NUMBERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.1, value: 0.7 },
  { name: "top_p", label: "Top p", min: 0, max: 1, step: 0.05, value: "" },
  { name: "top_k", label: "Top k", min: 0, max: 1000, step: 1, value: "" },
  { name: "max_tokens", label: "Most tokens", min: 1, max: 100000, step: 1, value: 1000 },
  { name: "seed", label: "Seed", min: 0, max: 2147483647, step: 1, value: "" },
];

/** The form of what a request asks for besides its messages. An empty field leaves the choice to the server. */
export class ChatSettings {
  constructor() {
    this.model = element("select", { id: "model" });
    this.thinking = element("input", { type: "checkbox", id: "thinking", checked: true });
    this.system = element("textarea", { id: "system", rows: 3, placeholder: "None" });
    this.useTools = element("input", { type: "checkbox", id: "use-tools" });
    this.tools = element("textarea", { id: "tools", rows: 8, spellcheck: "false", class: "code" });
    this.tools.value = JSON.stringify(WEATHER, null, 1);
    this.numbers = NUMBERS.map(({ name, value, ...limits }) => ({
      name,
      label: limits.label,
      input: element("input", { ...limits, type: "number", id: name, value, label: null, placeholder: "default" }),
    }));
    this.form = element(
      "section",
      { class: "settings", "aria-labelledby": "settings-title" },
      element("h2", { id: "settings-title", text: "Settings" }),
      labelled("Model", this.model),
      element(
        "div",
        { class: "switch" },
        this.thinking,
        element("label", { for: "thinking", text: "Think before answering" }),
      ),
      element("div", { class: "numbers" }, ...this.numbers.map(({ label, input }) => labelled(label, input))),
      labelled("System message", this.system),
      element("div", { class: "switch" }, this.useTools, element("label", { for: "use-tools", text: "Offer tools" })),
      element(
        "details",
        {},
        element("summary", { text: "Edit the tools (JSON)" }),
        element("label", { for: "tools", class: "unseen", text: "Tools in JSON" }),
        this.tools,
      ),
    );
  }

  /** @param {AbortSignal} signal */
  async loadModels(signal) {
    const { data } = await askJson("v1/models", signal);
    this.model.replaceChildren(...data.map(({ id }) => element("option", { value: id, text: id })));
  }

  /** Fields of a request. Throws a sentence for people where one of them is unusable. */
  fields() {
    const set = this.numbers.filter(({ input }) => input.value.trim() !== "");
    for (const { label, input } of set) {
      if (!input.checkValidity()) throw new Error(`${label}: ${input.validationMessage}`);
    }
    return {
      model: this.model.value,
      ...Object.fromEntries(set.map(({ name, input }) => [name, Number(input.value)])),
      chat_template_kwargs: { enable_thinking: this.thinking.checked },
      ...(this.useTools.checked ? { tools: this.#parsedTools() } : {}),
    };
  }

  /** @returns {{role: string, content: string}[]} */
  systemMessages() {
    const content = this.system.value.trim();
    return content === "" ? [] : [{ role: "system", content }];
  }

  #parsedTools() {
    try {
      return JSON.parse(this.tools.value);
    } catch (error) {
      throw new Error(`The tools are no JSON: ${error.message}`);
    }
  }
}

function labelled(text, control) {
  return element("div", { class: "field" }, element("label", { for: control.id, text }), control);
}
