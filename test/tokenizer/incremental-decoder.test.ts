import { describe, expect, test } from "vitest";
import { IncrementalDecoder } from "../../control-plane/tokenizer/incremental-decoder.ts";
import { Tokenizer } from "../../control-plane/tokenizer/tokenizer.ts";
import { NANO } from "../support/dialogues.ts";
import { fakeRandom } from "../support/fake-clock.ts";
import { randomText } from "../support/random-text.ts";

const tokenizer = await Tokenizer.load(NANO);

function decodedInPieces(tokens: readonly number[], cuts: readonly number[]): readonly string[] {
  const decoder = new IncrementalDecoder(tokenizer);
  const ends = [...cuts, tokens.length];
  const pieces = ends.map((end, i) => decoder.push(tokens.slice(i === 0 ? 0 : ends[i - 1]!, end)));
  return [...pieces, decoder.finish()];
}

describe("pieces of text", () => {
  test("every two-way split of emoji and CJK text joins to the text, and no piece ends inside a character", () => {
    const text = "a🦊漢字👨‍👩‍👧é\u0085<longcat_think>ﷺ\ufeffz";
    const tokens = [...tokenizer.encode(text)];
    for (let cut = 0; cut <= tokens.length; cut++) {
      const pieces = decodedInPieces(tokens, [cut]);
      expect(pieces.join("")).toBe(text);
      for (const piece of pieces) expect(piece).not.toContain("\ufffd");
    }
  });

  test("one token at a time gives what the whole decode gives, for random tokens that are no valid UTF-8", () => {
    const random = fakeRandom(11);
    for (let round = 0; round < 400; round++) {
      // Single bytes, in random order, break characters in every way.
      const [from, size] = round % 2 === 0 ? [20, 256] : [0, tokenizer.vocabSize];
      const tokens = Array.from({ length: 40 }, () => from + Math.floor(random.uniform() * size));
      const cuts = tokens.map((_, i) => i).filter(() => random.uniform() < 0.5);
      const whole = tokenizer.decode(tokens);
      expect(decodedInPieces(tokens, cuts).join("")).toBe(whole);
      expect(decodedInPieces(tokens, [...tokens.keys()]).join("")).toBe(whole);
    }
  });

  test("random text of all scripts comes through one token at a time", () => {
    const random = fakeRandom(12);
    for (let round = 0; round < 200; round++) {
      const text = randomText(random, [...tokenizer.specialTokens.keys()]);
      const tokens = [...tokenizer.encode(text)];
      expect(decodedInPieces(tokens, [...tokens.keys()]).join("")).toBe(text);
    }
  });

  test("a character cut by the end becomes U+FFFD, and is held back until then", () => {
    const tokens = [...tokenizer.encode("ok🦊")];
    const decoder = new IncrementalDecoder(tokenizer);
    expect(decoder.push(tokens.slice(0, -1))).toBe("ok");
    expect(decoder.finish()).toBe("\ufffd");
    expect(decoder.finish()).toBe("");
  });

  test("a cut character is given up where the next token starts another", () => {
    const [first] = tokenizer.encode("🦊");
    expect(new IncrementalDecoder(tokenizer).push([first!, ...tokenizer.encode("ab")])).toBe("\ufffdab");
  });

  test("an id outside the vocabulary stands for nothing", () => {
    expect(new IncrementalDecoder(tokenizer).push([5000, ...tokenizer.encode("a"), -1])).toBe("a");
  });
});

describe("sealed markers", () => {
  const { markers } = tokenizer;

  test("marker tokens come sealed, their spelling in letters does not, and unsealing gives the text back", () => {
    const spelled = "<longcat_think>";
    const decoder = new IncrementalDecoder(tokenizer, "sealed");
    const text = decoder.push([...tokenizer.encode(spelled), ...tokenizer.encodePlain(spelled)]);
    expect(text).toBe(markers.tag(spelled) + spelled);
    expect(markers.unseal(text)).toBe(spelled + spelled);
    expect(text.indexOf(spelled)).toBe(markers.tag(spelled).length);
  });

  test("a marker after a cut character ends it", () => {
    const [first] = tokenizer.encode("🦊");
    const decoder = new IncrementalDecoder(tokenizer, "sealed");
    expect(markers.unseal(decoder.push([first!, ...tokenizer.encode("</longcat_s>")]))).toBe("\ufffd</longcat_s>");
  });

  test("sealing and unsealing random text gives it back", () => {
    const random = fakeRandom(13);
    for (let round = 0; round < 500; round++) {
      const text = randomText(random, [...markers.ids.keys()]);
      expect(markers.unseal(markers.seal(text))).toBe(text);
    }
  });
});
