import { describe, expect, test } from "vitest";
import { templateMessages } from "../../control-plane/chat/messages.ts";
import { chatBody, dialogues } from "../support/dialogues.ts";

const call = (id: string, name: string, args: unknown) => ({
  id,
  type: "function",
  function: { name, arguments: args },
});
const asking = (args: unknown) => ({ role: "assistant", tool_calls: [call("c1", "get_time", args)] });

describe("messages for a template", () => {
  test("arguments become objects and tool messages get their names back, in every recorded dialogue", () => {
    for (const dialogue of dialogues) {
      const messages = templateMessages(chatBody(dialogue).messages as unknown[]);
      expect(messages).toEqual(dialogue.messages);
    }
  });

  test("text parts are joined", () => {
    const content = ["a", "", "b "].map((text) => ({ type: "text", text }));
    expect(templateMessages([{ role: "user", content }])).toEqual([{ role: "user", content: "ab " }]);
  });

  test("reasoning is kept under either name, missing content of an assistant becomes empty", () => {
    expect(templateMessages([{ role: "assistant", reasoning: "hm", content: null }])).toEqual([
      { role: "assistant", content: "", reasoning_content: "hm" },
    ]);
    expect(templateMessages([{ role: "assistant", reasoning: "no", reasoning_content: "yes", content: "x" }])).toEqual([
      { role: "assistant", content: "x", reasoning_content: "yes" },
    ]);
  });

  test("what no template reads is dropped", () => {
    const message = {
      role: "assistant",
      content: "x",
      refusal: null,
      annotations: [],
      audio: null,
      function_call: null,
    };
    expect(templateMessages([message])).toEqual([{ role: "assistant", content: "x" }]);
  });

  test("an empty string of arguments is an empty object", () => {
    expect(templateMessages([asking(" ")])[0]).toMatchObject({ tool_calls: [{ function: { arguments: {} } }] });
  });

  test("an id used again names the latest call", () => {
    const messages = templateMessages([
      { role: "assistant", tool_calls: [call("c", "first", "{}")] },
      { role: "assistant", tool_calls: [call("c", "second", "{}")] },
      { role: "tool", tool_call_id: "c", content: "1" },
    ]);
    expect(messages[2]).toMatchObject({ name: "second" });
  });
});

describe("bad messages are refused with the field at fault", () => {
  const user = { role: "user", content: "hi" };
  let deep: unknown = 1;
  for (let i = 0; i < 100; i++) deep = { deep };

  test.each<[string, readonly unknown[]]>([
    ["messages", []],
    ["messages", Array.from({ length: 5000 }, () => user)],
    ["messages[0]", ["hi"]],
    ["messages[0]", [null]],
    ["messages[0].role", [{ content: "hi" }]],
    ["messages[1].role", [user, { role: "narrator", content: "hi" }]],
    ["messages[0].role", [{ role: "function", name: "f", content: "hi" }]],
    ["messages[0].content", [{ role: "user" }]],
    ["messages[0].content", [{ role: "system", content: null }]],
    ["messages[0].content", [{ role: "user", content: 5 }]],
    ["messages[0].content", [{ role: "user", content: [] }]],
    ["messages[0].content", [{ role: "assistant", content: null }]],
    ["messages[0].content", [{ role: "assistant", tool_calls: [] }]],
    [
      "messages[1].content[1].type",
      [user, { role: "user", content: [{ type: "text", text: "a" }, { type: "image_url" }] }],
    ],
    ["messages[0].content[0]", [{ role: "user", content: ["a"] }]],
    ["messages[0].content[0].text", [{ role: "user", content: [{ type: "text" }] }]],
    ["messages[0].name", [{ role: "user", content: "a", name: 1 }]],
    ["messages[0].reasoning_content", [{ role: "assistant", content: "a", reasoning_content: {} }]],
    ["messages[0].function_call", [{ role: "assistant", content: "a", function_call: { name: "f", arguments: "{}" } }]],
    ["messages[0].tool_calls", [{ role: "assistant", tool_calls: {} }]],
    ["messages[0].tool_calls[0]", [{ role: "assistant", tool_calls: [1] }]],
    ["messages[0].tool_calls[0].type", [{ role: "assistant", tool_calls: [{ type: "custom" }] }]],
    ["messages[0].tool_calls[0].function", [{ role: "assistant", tool_calls: [{ id: "c" }] }]],
    ["messages[0].tool_calls[0].function.name", [{ role: "assistant", tool_calls: [call("c", "", "{}")] }]],
    ["messages[0].tool_calls[0].function.arguments", [asking("{")]],
    ["messages[0].tool_calls[0].function.arguments", [asking("[1]")]],
    ["messages[0].tool_calls[0].function.arguments", [asking("null")]],
    ["messages[0].tool_calls[0].function.arguments", [asking(7)]],
    ["messages[0].tool_calls[0].function.arguments", [asking(deep)]],
    ["messages[0].tool_calls[0].function.arguments", [asking(JSON.stringify(deep))]],
    ["messages[1].tool_call_id", [asking("{}"), { role: "tool", tool_call_id: "other", content: "x" }]],
    ["messages[0].tool_call_id", [{ role: "tool", content: "x" }]],
  ])("%s", (param, messages) => {
    expect(() => templateMessages(messages)).toThrow(
      expect.objectContaining({ code: "invalid_request", param, message: expect.stringContaining(param) }),
    );
  });

  test("what the client wrote is not repeated", () => {
    expect(() => templateMessages([asking('{"secret words')])).toThrow(/^(?!.*secret).*$/);
  });
});
