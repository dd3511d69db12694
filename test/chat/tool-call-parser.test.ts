import { describe, expect, test } from "vitest";
import { SPELLED_TAGS } from "../../control-plane/chat/tags.ts";
import { ToolCallParser } from "../../control-plane/chat/tool-call-parser.ts";
import type { ChatTool } from "../../control-plane/chat/tools.ts";
import { fakeRandom } from "../support/fake-clock.ts";

const tools: readonly ChatTool[] = [
  {
    type: "function",
    function: {
      name: "search",
      parameters: {
        type: "object",
        properties: {
          query: { type: "string" },
          days: { type: "integer" },
          exact: { type: "boolean" },
          tags: { type: "array" },
          when: { type: ["string", "null"] },
          either: { anyOf: [{ type: "string" }, { type: "integer" }] },
          unit: { enum: ["C", "F"] },
        },
      },
    },
  },
];

interface Call {
  readonly id: string;
  readonly name: string;
  arguments: string;
}

function parse(pieces: readonly string[], ended = true) {
  let ids = 0;
  const newCallId = () => `call_${ids++}`;
  const parser = new ToolCallParser({ tags: SPELLED_TAGS, tools, newCallId, unseal: (text) => text });
  const calls: Call[] = [];
  let content = "";
  for (const part of [...pieces.map((piece) => parser.push(piece)), parser.finish(ended)]) {
    content += part.content;
    for (const { index, id, name, arguments: piece } of part.toolCalls) {
      if (id !== null && name !== null) {
        expect(index).toBe(calls.length);
        calls.push({ id, name, arguments: piece });
      } else {
        expect(index).toBe(calls.length - 1);
        calls[index]!.arguments += piece;
      }
    }
  }
  expect(parser.calls).toBe(calls.length);
  return { content, calls };
}

/** At once, in every two pieces, in random pieces and character by character; all must agree. */
function parseEveryWay(text: string, ended = true) {
  const whole = parse([text], ended);
  for (let cut = 0; cut <= text.length; cut++) {
    expect(parse([text.slice(0, cut), text.slice(cut)], ended)).toEqual(whole);
  }
  expect(parse([...text], ended)).toEqual(whole);
  const random = fakeRandom(text.length);
  const pieces: string[] = [];
  for (let at = 0; at < text.length; at += pieces.at(-1)!.length) {
    pieces.push(text.slice(at, at + 1 + Math.floor(random.uniform() * 12)));
  }
  expect(parse(pieces, ended)).toEqual(whole);
  return whole;
}

const pair = (key: string, value: string) =>
  `<longcat_arg_key>${key}</longcat_arg_key>\n<longcat_arg_value>${value}</longcat_arg_value>\n`;
const tagged = (name: string, ...pairs: string[]) =>
  `<longcat_tool_call>${name}\n${pairs.join("")}</longcat_tool_call>\n`;
const written = (body: string) => `<longcat_tool_call>\n${body}\n</longcat_tool_call>`;

describe("the tagged form", () => {
  test("gives a name and typed arguments", () => {
    const text = tagged(
      "search",
      pair("query", ' 12 "months"\n'),
      pair("days", "3"),
      pair("exact", "True"),
      pair("tags", "['a', None]"),
      pair("other", '{"x": 1.50}'),
    );
    const { content, calls } = parseEveryWay(text);
    expect(content).toBe("");
    expect(calls).toEqual([
      {
        id: "call_0",
        name: "search",
        arguments: '{"query":" 12 \\"months\\"\\n","days":3,"exact":true,"tags":["a",null],"other":{"x": 1.50}}',
      },
    ]);
  });

  test.each([
    ["query", "5", "5"],
    ["unit", "C", "C"],
    ["when", "null", null],
    ["when", "5", "5"],
    ["either", "5", 5],
    ["either", "5.5", "5.5"],
    ["either", "word", "word"],
    ["days", "many", "many"],
    ["days", " 7\n", 7],
    ["exact", "false", false],
    ["unknown", "007", "007"],
    ["unknown", "{'a': [1, 'it\\'s', True,],}", { a: [1, "it's", true] }],
    ["unknown", "[1, 2", "[1, 2"],
    ["unknown", "None", null],
    ["unknown", "(5)", "(5)"],
    ["unknown", "", ""],
    ["__proto__", "1", 1],
  ])("argument %s written %j is %j", (key, value, expected) => {
    const { calls } = parseEveryWay(tagged("search", pair(key, value)));
    expect(Object.entries(JSON.parse(calls[0]!.arguments))).toEqual([[key, expected]]);
  });

  test("works without arguments, on one line and with a namespace before the name", () => {
    expect(parseEveryWay(tagged("search")).calls).toEqual([{ id: "call_0", name: "search", arguments: "{}" }]);
    expect(parseEveryWay("<longcat_tool_call>search</longcat_tool_call>").calls[0]?.arguments).toBe("{}");
    const line = `<longcat_tool_call> functions.search${pair("days", "1")}</longcat_tool_call>`;
    expect(parseEveryWay(line).calls).toEqual([{ id: "call_0", name: "search", arguments: '{"days":1}' }]);
  });

  test("is told while it arrives: the name at once, a string's text as it comes", () => {
    const parser = new ToolCallParser({ tags: SPELLED_TAGS, tools, newCallId: () => "id", unseal: (text) => text });
    const told = (text: string) => parser.push(text).toolCalls;
    expect(told("<longcat_tool_call>search\n")).toEqual([{ index: 0, id: "id", name: "search", arguments: "" }]);
    expect(told("<longcat_arg_key>query</longcat_arg_key><longcat_arg_value>li")).toEqual([
      { index: 0, id: null, name: null, arguments: '{"query":"li' },
    ]);
    expect(told('ke "')).toEqual([{ index: 0, id: null, name: null, arguments: 'ke \\"' }]);
    expect(told("</longcat_arg_value></longcat_tool_call>")).toEqual([
      { index: 0, id: null, name: null, arguments: '"}' },
    ]);
  });
});

describe("the JSON form", () => {
  test.each([
    [
      '{"name": "search", "arguments": {"query": "a</b>", "n": [1.0, 12345678901234567890]}}',
      '{"query":"a</b>","n":[1.0,12345678901234567890]}',
    ],
    ['{"arguments": {"a": {}}, "name": "functions.search"}', '{"a":{}}'],
    ['{"name": "search", "arguments": "{\\"days\\": 2}"}', '{"days":2}'],
    ['{"name": "search", "parameters": {"days": 2}}', '{"days":2}'],
    ['{"name": "search"}', "{}"],
  ])("%s", (body, args) => {
    expect(parseEveryWay(written(body))).toEqual({
      content: "",
      calls: [{ id: "call_0", name: "search", arguments: args }],
    });
  });

  test("that lacks only its closing tag is a call all the same", () => {
    const { calls, content } = parseEveryWay('<longcat_tool_call>{"name": "search", "arguments": {}}', false);
    expect([calls.length, content]).toEqual([1, ""]);
  });
});

describe("content", () => {
  test("before, between and after calls is kept, white space alone between calls is not", () => {
    const one = tagged("search", pair("days", "1"));
    expect(parseEveryWay(`${one}\n${one}\n`)).toMatchObject({
      content: "",
      calls: [{ id: "call_0" }, { id: "call_1" }],
    });
    expect(parseEveryWay(`\n\n${one}`)).toMatchObject({ content: "", calls: [{ name: "search" }] });
    expect(parseEveryWay(`Let me see.\n${one} Then ${one}done`)).toMatchObject({
      content: "Let me see.\n\n Then \ndone",
      calls: [{ id: "call_0" }, { id: "call_1" }],
    });
  });

  test.each(["", " \n", "no call", "a < b <longcat_tool", "</longcat_tool_call>"])(
    "%j without calls is unchanged",
    (text) => {
      expect(parseEveryWay(text)).toEqual({ content: text, calls: [] });
    },
  );

  test.each([
    written('{"name": "search", "arguments": {'),
    written('{"name": "search", "arguments": [1]}'),
    written('{"name": 5}'),
    written('{"name": "two words"}'),
    written("not a name at all\nmore"),
    "<longcat_tool_call></longcat_tool_call>",
    `<longcat_tool_call>${"x".repeat(300)}\n</longcat_tool_call>`,
    '<longcat_tool_call>{"name": "sea',
    "<longcat_tool_call>sea",
    "<longcat_tool_call>",
    "<longcat_tool_call> \n",
    "text <longcat_tool_call>sea",
  ])("a block that holds no call goes back: %j", (text) => {
    expect(parseEveryWay(text)).toEqual({ content: text, calls: [] });
    expect(parseEveryWay(text, false)).toEqual({ content: text, calls: [] });
  });

  test("a call after a block that holds none is found", () => {
    const one = tagged("search");
    expect(parseEveryWay(written("no name here") + one)).toMatchObject({
      content: written("no name here"),
      calls: [{ name: "search" }],
    });
    expect(parseEveryWay(`<longcat_tool_call>not closed ${one}`)).toMatchObject({
      content: "<longcat_tool_call>not closed ",
      calls: [{ name: "search" }],
    });
  });

  test("what does not belong into a call goes back, the call stays valid", () => {
    const stray = `<longcat_tool_call>search\nhm${pair("days", "1")}<longcat_arg_key>tags</longcat_arg_key>\n</longcat_tool_call>`;
    const { content, calls } = parseEveryWay(stray);
    expect(content).toBe("\nhm<longcat_arg_key>tags</longcat_arg_key>");
    expect(JSON.parse(calls[0]!.arguments)).toEqual({ days: 1 });
  });

  test("a value or block without its end is closed by what follows, or by the end the model chose", () => {
    const open = "<longcat_tool_call>search\n<longcat_arg_key>query</longcat_arg_key><longcat_arg_value>a";
    for (const text of [open, `${open}</longcat_tool_call>`, `${open}</longcat_arg_value>`]) {
      expect(JSON.parse(parseEveryWay(text).calls[0]!.arguments)).toEqual({ query: "a" });
    }
    const two = parseEveryWay(open + tagged("search"));
    expect(two.calls.map((call) => JSON.parse(call.arguments))).toEqual([{ query: "a" }, {}]);
  });

  test("a call that was cut off cannot be taken for a whole one", () => {
    const text = tagged("search", pair("query", "cut"), pair("days", "12"));
    const block = text.trimEnd();
    for (let end = "<longcat_tool_call>search\n".length; end < block.length; end++) {
      const { calls } = parse([text.slice(0, end)], false);
      expect(() => JSON.parse(calls[0]!.arguments)).toThrow(SyntaxError);
    }
  });
});
