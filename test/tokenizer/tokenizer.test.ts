import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { CheckpointError } from "../../control-plane/tokenizer/checkpoint-file.ts";
import { Tokenizer } from "../../control-plane/tokenizer/tokenizer.ts";
import { dialogues, NANO } from "../support/dialogues.ts";
import { fakeRandom } from "../support/fake-clock.ts";
import { randomText } from "../support/random-text.ts";

const tokenizer = await Tokenizer.load(NANO);
const json = (): { [key: string]: unknown; added_tokens: object[]; model: Record<string, unknown> } =>
  JSON.parse(readFileSync(join(NANO, "tokenizer.json"), "utf8"));

/** Tokens of the recorded prompts, from the reference library. */
function recordedTokens(): readonly Int32Array[] {
  const file = readFileSync(join(NANO, "golden.safetensors"));
  const start = 8 + Number(file.readBigUInt64LE(0));
  const header: Record<string, { data_offsets: [number, number] }> = JSON.parse(file.toString("utf8", 8, start));
  return dialogues.map((_, i) => {
    const [from, to] = header[`case${i}.tokens`]!.data_offsets;
    return Int32Array.from({ length: (to - from) / 4 }, (_, k) => file.readInt32LE(start + from + k * 4));
  });
}

describe("encoding", () => {
  test("every recorded prompt gives the tokens of the reference library", () => {
    const recorded = recordedTokens();
    dialogues.forEach((dialogue, i) => {
      const tokens = tokenizer.encode(dialogue.prompt);
      expect(tokens).toEqual(recorded[i]);
      expect(tokenizer.decode(tokens)).toBe(dialogue.prompt);
    });
  });

  test("any text comes back from its tokens, read with and without special tokens", () => {
    const random = fakeRandom(7);
    for (let i = 0; i < 500; i++) {
      const text = randomText(random, [...tokenizer.specialTokens.keys()]);
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
      expect(tokenizer.decode(tokenizer.encodePlain(text))).toBe(text);
    }
  });

  test("numerals of all scripts stand alone and U+0085 is white space, as in the reference library", () => {
    const pieces = (text: string) => [...tokenizer.encode(text)].length;
    expect(pieces("٣٤")).toBe(pieces("٣") + pieces("٤"));
    expect(pieces("a\u0085b")).toBe(pieces("a") + pieces("\u0085") + pieces("b"));
    expect([...tokenizer.encode("\u0085\u0085b")]).toEqual(
      ["\u0085", "\u0085", "b"].flatMap((part) => [...tokenizer.encode(part)]),
    );
  });

  test("a spelled special token is that token in encode and letters in encodePlain", () => {
    for (const [spelling, id] of tokenizer.specialTokens) {
      expect([...tokenizer.encode(`a${spelling}b`)]).toContain(id);
      const plain = [...tokenizer.encodePlain(`a${spelling}b`)];
      expect(plain.filter((token) => [...tokenizer.specialTokens.values()].includes(token))).toEqual([]);
    }
  });

  test("an entry that a merge could build is still no special token in plain text", () => {
    const changed = json();
    const merges = changed.model.merges as unknown[];
    const vocab = changed.model.vocab as Record<string, number>;
    changed.added_tokens.push({ id: vocab.ca, content: "ca", special: true });
    expect(merges).toContainEqual(["c", "a"]);
    const odd = new Tokenizer(changed, "here");
    expect([...odd.encode("ca")]).toEqual([vocab.ca]);
    expect([...odd.encodePlain("ca")]).not.toContain(vocab.ca);
    expect(odd.decode(odd.encodePlain("ca"))).toBe("ca");
  });

  test("encoding stops soon after the limit", () => {
    const text = "word ".repeat(1000);
    const tokens = tokenizer.encode(text, 10);
    expect(tokens.length).toBeGreaterThan(10);
    expect(tokens.length).toBeLessThan(30);
    expect([...tokens]).toEqual([...tokenizer.encode(text).subarray(0, tokens.length)]);
    expect(tokenizer.encode(text, 1001).length).toBe(tokenizer.encode(text).length);
    for (const endless of ["a", "🦊", " ", "7"])
      expect(tokenizer.encode(endless.repeat(100_000), 99).length).toBeGreaterThan(99);
  });

  test("no text has no tokens, and no tokens no text", () => {
    expect([...tokenizer.encode("")]).toEqual([]);
    expect(tokenizer.decode([])).toBe("");
  });
});

describe("tokens", () => {
  test("the bytes of a run of tokens are the UTF-8 of its text", () => {
    const text = "Grüße 🦊漢字 <longcat_user>\u0000 end";
    const bytes = Buffer.concat([...tokenizer.encode(text)].map((id) => tokenizer.tokenBytes(id)));
    expect(bytes.toString("utf8")).toBe(text);
    expect(Math.max(...[...tokenizer.encode(text)].map((id) => tokenizer.tokenBytes(id).length))).toBeLessThanOrEqual(
      tokenizer.longestTokenBytes,
    );
  });

  test("a token that is part of a character shows as U+FFFD alone", () => {
    const [first] = tokenizer.encode("🦊");
    expect(tokenizer.wholeText(first!)).toBeNull();
    expect(tokenizer.tokenText(first!)).toContain("\ufffd");
  });

  test.each([
    [[5, -1], 1],
    [[2048], 0],
    [[1, 2, 3.5], 2],
    [[Number.NaN], 0],
  ])("an id outside the vocabulary is refused with its index: %j", (ids, at) => {
    expect(() => tokenizer.decode(ids)).toThrow(`tokens[${at}] must be a token id from 0 to 2047.`);
    expect(() => tokenizer.assertTokens(ids, "prompt")).toThrow(
      expect.objectContaining({ code: "invalid_request", param: `prompt[${at}]` }),
    );
  });
});

describe("a tokenizer.json that cannot be used is refused in one sentence", () => {
  const folderWith = (content: string | null) => {
    const folder = mkdtempSync(join(tmpdir(), "margay-tokenizer-"));
    onTestFinished(() => rmSync(folder, { recursive: true }));
    if (content !== null) writeFileSync(join(folder, "tokenizer.json"), content);
    return folder;
  };

  test.each([
    ["is missing", null, /tokenizer\.json does not exist\.$/],
    ["is cut off", '{"model": {', /tokenizer\.json is not valid JSON\.$/],
    ["is a list", "[]", /tokenizer\.json must hold a JSON object\.$/],
    ["has no model", "{}", /tokenizer\.json: model is not what a byte-level BPE needs/],
  ])("when it %s", async (_, content, message) => {
    const load = Tokenizer.load(folderWith(content));
    await expect(load).rejects.toThrow(message);
    await expect(load).rejects.toBeInstanceOf(CheckpointError);
  });

  test("when the model is no BPE, the pre-tokenizer is not byte-level, or a byte has no entry", () => {
    const unigram = json();
    unigram.model.type = "Unigram";
    expect(() => new Tokenizer(unigram, "here")).toThrow(/^here: model.type is not/);
    expect(() => new Tokenizer({ ...json(), pre_tokenizer: { type: "Whitespace" } }, "here")).toThrow(
      "here: pre_tokenizer must end in ByteLevel",
    );
    const lacking = json();
    delete (lacking.model.vocab as Record<string, number>).a;
    expect(() => new Tokenizer(lacking, "here")).toThrow("here: model.vocab has no entry for byte 97.");
  });
});
