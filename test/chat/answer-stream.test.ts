import { describe, expect, test } from "vitest";
import { type AnswerOptions, AnswerStream } from "../../control-plane/chat/answer-stream.ts";
import type { ChatTool } from "../../control-plane/chat/tools.ts";
import { type Dialogue, dialogues, expectedAnswer, nanoModel } from "../support/dialogues.ts";

const model = await nanoModel();
const { tokenizer } = model;
const [eos] = model.eosTokens;
const tool: ChatTool = {
  type: "function",
  function: { name: "note", parameters: { properties: { text: { type: "string" } } } },
};
const chat = { model, stop: [], startsInReasoning: false, tools: null, parse: "chat" } as const;

interface Gathered {
  content: string;
  reasoning: string;
  toolCalls: { id: string; name: string; arguments: string }[];
  stopped: boolean;
  calledTools: boolean;
}

function gather(options: AnswerOptions, pieces: readonly (readonly number[])[]): Gathered {
  const answer = new AnswerStream(options);
  const gathered: Gathered = { content: "", reasoning: "", toolCalls: [], stopped: false, calledTools: false };
  const add = (delta: ReturnType<AnswerStream["push"]>) => {
    gathered.content += delta.content;
    gathered.reasoning += delta.reasoning;
    for (const call of delta.toolCalls) {
      const { index, id, name } = call;
      if (id !== null && name !== null) gathered.toolCalls[index] = { id, name, arguments: call.arguments };
      else gathered.toolCalls[index]!.arguments += call.arguments;
    }
  };
  for (const piece of pieces) add(answer.push(Int32Array.from(piece)));
  add(answer.finish());
  return { ...gathered, stopped: answer.stopped, calledTools: answer.calledTools };
}

/** At once, in every two pieces and token by token; all must agree. */
function gatherEveryWay(options: AnswerOptions, tokens: readonly number[]): Gathered {
  const whole = gather(options, [tokens]);
  for (let cut = 0; cut <= tokens.length; cut++) {
    expect(gather(options, [tokens.slice(0, cut), tokens.slice(cut)])).toEqual(whole);
  }
  expect(
    gather(
      options,
      tokens.map((token) => [token]),
    ),
  ).toEqual(whole);
  return whole;
}

const answerTo = (dialogue: Dialogue): AnswerOptions => ({
  ...chat,
  startsInReasoning: dialogue.prompt.endsWith("<longcat_think>\n"),
  tools: dialogue.tools,
});

describe("recorded answers", () => {
  test("come out as content, reasoning and tool calls, however their tokens arrive", () => {
    let calls = 0;
    for (const dialogue of dialogues) {
      const gathered = gatherEveryWay(answerTo(dialogue), [...tokenizer.encode(dialogue.greedy)]);
      const expected = expectedAnswer(dialogue);
      expect({
        content: gathered.content,
        reasoning: gathered.reasoning,
        toolCalls: gathered.toolCalls.map((call) => ({ name: call.name, arguments: JSON.parse(call.arguments) })),
      }).toEqual(expected);
      expect(gathered.calledTools).toBe(expected.toolCalls.length > 0);
      calls += expected.toolCalls.length;
    }
    expect(calls).toBeGreaterThan(0);
  });

  test("as text come out whole, markers spelled, without the end token", () => {
    for (const dialogue of dialogues) {
      const gathered = gatherEveryWay({ ...answerTo(dialogue), parse: "text" }, [...tokenizer.encode(dialogue.greedy)]);
      expect(gathered.content).toBe(dialogue.greedy.replace("</longcat_s>", ""));
      expect([gathered.reasoning, gathered.toolCalls]).toEqual(["", []]);
    }
  });
});

describe("structure comes from special tokens alone", () => {
  const spelled = "<longcat_tool_call>note\n</longcat_tool_call></longcat_think><longcat_think></longcat_s>";

  test("a tag written in plain letters is text", () => {
    const options = { ...chat, tools: [tool], startsInReasoning: true };
    const tokens = [
      ...tokenizer.encodePlain(spelled),
      ...tokenizer.encode("</longcat_think>\n"),
      ...tokenizer.encodePlain(spelled),
      eos!,
    ];
    expect(gatherEveryWay(options, tokens)).toMatchObject({ content: spelled, reasoning: spelled, toolCalls: [] });
  });

  test("tags and special tokens inside an argument are spelled out", () => {
    const tokens = [
      ...tokenizer.encode("<longcat_tool_call>note\n<longcat_arg_key>text</longcat_arg_key>\n<longcat_arg_value>a "),
      ...tokenizer.encode("<longcat_user>"),
      ...tokenizer.encodePlain("</longcat_tool_call>"),
      ...tokenizer.encode("</longcat_arg_value>\n</longcat_tool_call>\n"),
      eos!,
    ];
    const { toolCalls, content } = gatherEveryWay({ ...chat, tools: [tool] }, tokens);
    expect(content).toBe("");
    expect(JSON.parse(toolCalls[0]!.arguments)).toEqual({ text: "a <longcat_user></longcat_tool_call>" });
  });

  test("without tools a tool call is content", () => {
    const text = "<longcat_tool_call>note\n</longcat_tool_call>\n";
    for (const tools of [null, []]) {
      expect(gatherEveryWay({ ...chat, tools }, [...tokenizer.encode(text)])).toMatchObject({
        content: text,
        toolCalls: [],
      });
    }
  });
});

describe("stop strings", () => {
  const stopAt = (text: string, stop: readonly string[], more: Partial<AnswerOptions> = {}) =>
    gatherEveryWay({ ...chat, stop, ...more }, [...tokenizer.encode(text)]);

  test("end the answer before them, held back while they may begin", () => {
    expect(stopAt("one two three", ["wo th"])).toMatchObject({ content: "one t", stopped: true });
    expect(stopAt("one two three", ["three!"])).toMatchObject({ content: "one two three", stopped: false });
  });

  test("count in the reasoning too", () => {
    const text = "first, second\n</longcat_think>\nthird";
    expect(stopAt(text, ["second"], { startsInReasoning: true })).toMatchObject({ reasoning: "first, ", content: "" });
  });

  test("do not match inside a special token, but may hold one whole", () => {
    const text = "a<longcat_user>b<longcat_pad>c";
    expect(stopAt(text, ["longcat", "<", "r>b"])).toMatchObject({ content: text, stopped: false });
    expect(stopAt(text, ["<longcat_pad>"])).toMatchObject({ content: "a<longcat_user>b", stopped: true });
    expect(stopAt(text, ["b<longcat_pad>c"])).toMatchObject({ content: "a<longcat_user>", stopped: true });
  });

  test("that end inside a tool call leave it cut, and a call that lacks only its end is whole when the model ended", () => {
    const text = "<longcat_tool_call>note\n<longcat_arg_key>text</longcat_arg_key>\n<longcat_arg_value>abc STOP";
    const cut = stopAt(text, ["STOP"], { tools: [tool] });
    expect(cut.toolCalls).toEqual([{ id: "call_0", name: "note", arguments: '{"text":"abc ' }]);
    const ended = gatherEveryWay({ ...chat, tools: [tool] }, [...tokenizer.encode(text), eos!]);
    expect(ended.toolCalls[0]?.arguments).toBe('{"text":"abc STOP"}');
  });

  test("nothing comes after one", () => {
    const answer = new AnswerStream({ ...chat, stop: ["two"] });
    answer.push(tokenizer.encode("one two"));
    expect(answer.stopped).toBe(true);
    expect(answer.push(tokenizer.encode(" three"))).toEqual({ content: "", reasoning: "", toolCalls: [] });
    expect(answer.finish()).toEqual({ content: "", reasoning: "", toolCalls: [] });
  });
});

describe("tokens", () => {
  test("characters of several tokens are never cut", () => {
    const text = "fox 🦊, 漢字 and 👨‍👩‍👧!";
    const answer = new AnswerStream(chat);
    const pieces = [...tokenizer.encode(text)].map((token) => answer.push([token]).content);
    expect(pieces.join("") + answer.finish().content).toBe(text);
    for (const piece of pieces) expect(piece.isWellFormed() && !piece.includes("\ufffd")).toBe(true);
  });

  test("that end the answer are no text: the model's own and the request's", () => {
    const stop = tokenizer.encode("!")[0]!;
    const tokens = [...tokenizer.encode("so"), stop];
    expect(gatherEveryWay({ ...chat, stopTokens: [stop] }, tokens).content).toBe("so");
    expect(gatherEveryWay(chat, tokens).content).toBe("so!");
    expect(gatherEveryWay(chat, [...tokenizer.encode("so"), eos!]).content).toBe("so");
  });

  test("the ids of calls come from the caller", () => {
    let id = 40;
    const options = { ...chat, tools: [tool], newCallId: () => `id${id++}` };
    const call = "<longcat_tool_call>note\n</longcat_tool_call>\n";
    const { toolCalls } = gather(options, [[...tokenizer.encode(call + call)]]);
    expect(toolCalls.map((one) => one.id)).toEqual(["id40", "id41"]);
  });
});
