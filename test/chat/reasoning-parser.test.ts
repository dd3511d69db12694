import { describe, expect, test } from "vitest";
import { ReasoningParser } from "../../control-plane/chat/reasoning-parser.ts";
import { SPELLED_TAGS } from "../../control-plane/chat/tags.ts";

function parse(pieces: readonly string[], startsInReasoning: boolean) {
  const parser = new ReasoningParser(SPELLED_TAGS, startsInReasoning);
  const parts = [...pieces.map((piece) => parser.push(piece)), parser.finish()];
  return { reasoning: parts.map((p) => p.reasoning).join(""), content: parts.map((p) => p.content).join("") };
}

/** At once, in every two pieces and character by character; all must agree. */
function parseEveryWay(text: string, startsInReasoning: boolean) {
  const whole = parse([text], startsInReasoning);
  for (let cut = 0; cut <= text.length; cut++) {
    expect(parse([text.slice(0, cut), text.slice(cut)], startsInReasoning)).toEqual(whole);
  }
  expect(parse([...text], startsInReasoning)).toEqual(whole);
  return whole;
}

describe("reasoning and content are told apart however the text is cut", () => {
  test.each([
    ["begun by the prompt", true, "because\n</longcat_think>\nso", "because", "so"],
    ["begun by the answer", false, "<longcat_think>\nbecause\n</longcat_think>\nso", "because", "so"],
    ["begun by both", true, "<longcat_think>\nbecause\n</longcat_think>\nso", "because", "so"],
    ["begun after white space", false, "\n <longcat_think>because</longcat_think>so", "because", "so"],
    ["absent", false, "so it is", "", "so it is"],
    ["absent, with white space kept", false, "\n so\n", "", "\n so\n"],
    ["nothing at all", false, "", "", ""],
    ["nothing at all, inside", true, "", "", ""],
    ["only white space", false, " \n", "", " \n"],
    ["never closed", true, "I wonder <longcat", "I wonder <longcat", ""],
    ["never closed, with a newline at the end", true, "\nI wonder\n", "I wonder", ""],
    ["a newline alone", true, "\n", "", ""],
    ["empty", true, "</longcat_think>\nso", "", "so"],
    ["empty lines", true, "\n\n\n</longcat_think>\n\n\nso", "\n", "\n\nso"],
    ["tags that are none", true, "a </longcat_ think> < b\n</longcat_think>c", "a </longcat_ think> < b", "c"],
    [
      "a second pair is text",
      true,
      "a</longcat_think>b<longcat_think>c</longcat_think>d",
      "a",
      "b<longcat_think>c</longcat_think>d",
    ],
    ["a tag in the content", false, "use <longcat_think> here", "", "use <longcat_think> here"],
    ["a closing tag without reasoning", false, "so</longcat_think>", "", "so</longcat_think>"],
  ])("%s", (_, startsInReasoning, text, reasoning, content) => {
    expect(parseEveryWay(text, startsInReasoning)).toEqual({ reasoning, content });
  });

  test("what can be no tag is told at once", () => {
    const parser = new ReasoningParser(SPELLED_TAGS, true);
    expect(parser.push("think").reasoning).toBe("think");
    expect(parser.push("ing</long").reasoning).toBe("ing");
    expect(parser.push("er").reasoning).toBe("</longer");
    expect(parser.push("</longcat_think>\nso").content).toBe("so");
    expect(parser.push(" fast").content).toBe(" fast");
  });
});
