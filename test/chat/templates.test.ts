import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { ChatTemplate, loadChatTemplate } from "../../control-plane/chat/templates.ts";
import { CheckpointError } from "../../control-plane/tokenizer/checkpoint-file.ts";

const messages = [{ role: "user", content: "hi" }];
const tools = [{ type: "function", function: { name: "f" } }];

function folderWith(files: Readonly<Record<string, string>>): string {
  const folder = mkdtempSync(join(tmpdir(), "margay-template-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), content);
  return folder;
}
const config = (chat_template: unknown, rest: object = {}) => JSON.stringify({ chat_template, ...rest });

describe("where the template is found", () => {
  test("chat_template.jinja comes before tokenizer_config.json", async () => {
    const folder = folderWith({ "chat_template.jinja": "file", "tokenizer_config.json": config("config") });
    expect((await loadChatTemplate(folder))?.render({ messages, tools: null, variables: {} })).toBe("file");
  });

  test("tokenizer_config.json holds one for all or one by name, tool_use for requests with tools", async () => {
    const one = await loadChatTemplate(folderWith({ "tokenizer_config.json": config("one") }));
    expect(one?.render({ messages, tools, variables: {} })).toBe("one");
    const named = [
      { name: "default", template: "plain" },
      { name: "tool_use", template: "tools" },
    ];
    const two = await loadChatTemplate(folderWith({ "tokenizer_config.json": config(named) }));
    expect(two?.render({ messages, tools: null, variables: {} })).toBe("plain");
    expect(two?.render({ messages, tools, variables: {} })).toBe("tools");
  });

  test("there may be none", async () => {
    expect(await loadChatTemplate(folderWith({}))).toBeNull();
    expect(await loadChatTemplate(folderWith({ "tokenizer_config.json": "{}" }))).toBeNull();
  });

  test.each([
    ["{% for %}", /tokenizer_config\.json: chat_template is not a valid template/],
    [[{ name: "other", template: "x" }], /chat_template must be a string or hold a template named default\.$/],
    [7, /chat_template must be a string/],
  ])("a broken one is refused: %j", async (template, message) => {
    const load = loadChatTemplate(folderWith({ "tokenizer_config.json": config(template) }));
    await expect(load).rejects.toThrow(message);
    await expect(load).rejects.toBeInstanceOf(CheckpointError);
  });
});

describe("rendering", () => {
  const render = (source: string, variables = {}) =>
    new ChatTemplate(source, "here").render({ messages, tools: null, variables });

  test("special tokens of the config are variables, written either way", async () => {
    const tokens = { bos_token: "<s>", eos_token: { content: "</s>" } };
    const folder = folderWith({ "tokenizer_config.json": config("{{bos_token}}{{eos_token}}", tokens) });
    expect((await loadChatTemplate(folder))?.render({ messages, tools: null, variables: {} })).toBe("<s></s>");
  });

  test("a template's refusal reaches the client, its failure does not", () => {
    expect(() => render("{{ raise_exception('roles must alternate') }}")).toThrow(
      expect.objectContaining({
        code: "invalid_request",
        param: "messages",
        message: "The model's chat template refused: roles must alternate",
      }),
    );
    expect(() => render("{{ messages[0].content | no_such_filter }}")).toThrow(
      expect.objectContaining({ code: "invalid_request", message: expect.stringMatching(/it does not fit/) }),
    );
    expect(() => render(`{{ raise_exception("${"long ".repeat(1000)}") }}`)).toThrow(/^.{300,400}$/);
  });

  test("a key called items does not hide the method", () => {
    const source = "{% for k, v in box.items() %}{{ k }}={{ v }};{% endfor %}{{ box.items() | length }}";
    expect(render(source, { box: { items: 1, b: 2 } })).toBe("items=1;b=2;2");
  });
});
