import { describe, expect, test } from "vitest";
import { StopMatcher } from "../../control-plane/tokenizer/stop-matcher.ts";
import { fakeRandom } from "../support/fake-clock.ts";

interface Outcome {
  readonly text: string;
  readonly stopped: boolean;
}

function inPieces(stops: readonly string[], pieces: readonly string[]): Outcome {
  const matcher = new StopMatcher(stops);
  const text = pieces.map((piece) => matcher.push(piece).text).join("") + matcher.finish();
  return { text, stopped: matcher.stopped };
}

/** Reads character by character and looks at every end. */
function naive(stops: readonly string[], text: string): Outcome {
  for (let end = 1; end <= text.length; end++) {
    const found = stops.filter((stop) => text.slice(0, end).endsWith(stop));
    if (found.length === 0) continue;
    return { text: text.slice(0, end - Math.max(...found.map((stop) => stop.length))), stopped: true };
  }
  return { text, stopped: false };
}

describe("a stop string", () => {
  test("is found across every cut, and nothing of it is told", () => {
    const text = "one two STOP three";
    for (let cut = 0; cut <= text.length; cut++) {
      expect(inPieces(["STOP"], [text.slice(0, cut), text.slice(cut)])).toEqual({ text: "one two ", stopped: true });
    }
  });

  test("is the one that ends first; of two that end together the longer", () => {
    expect(inPieces(["abc", "b"], ["abc"])).toEqual({ text: "a", stopped: true });
    expect(inPieces(["c", "bc"], ["abc"])).toEqual({ text: "a", stopped: true });
  });

  test("that overlaps itself is found", () => {
    expect(inPieces(["aab"], ["aa", "a", "b"])).toEqual({ text: "a", stopped: true });
    expect(inPieces(["abab"], ["aba", "abab"])).toEqual({ text: "aba", stopped: true });
  });

  test("is found as the naive search finds it, for random stops, texts and cuts", () => {
    const random = fakeRandom(3);
    const below = (n: number) => Math.floor(random.uniform() * n);
    const word = (length: number) => Array.from({ length }, () => "ab🦊"[below(4)] ?? "").join("");
    let stopped = 0;
    for (let round = 0; round < 4000; round++) {
      const stops = Array.from({ length: 1 + below(4) }, () => word(1 + below(5)));
      const text = word(below(24));
      const pieces: string[] = [];
      for (let at = 0; at < text.length; ) {
        const size = 1 + below(5);
        pieces.push(text.slice(at, at + size));
        at += size;
      }
      const outcome = inPieces(stops, pieces);
      expect(outcome).toEqual(naive(stops, text));
      if (outcome.stopped) stopped++;
    }
    expect(stopped).toBeGreaterThan(1000);
    expect(stopped).toBeLessThan(3999);
  });
});

describe("text", () => {
  test("passes at once when it cannot begin a stop string, and waits only as long as it may", () => {
    const matcher = new StopMatcher(["\n\nUser:"]);
    expect(matcher.push("Hello\n")).toEqual({ text: "Hello", stopped: false });
    expect(matcher.push("\nUse")).toEqual({ text: "", stopped: false });
    expect(matcher.push("ful")).toEqual({ text: "\n\nUseful", stopped: false });
    expect(matcher.push("\n")).toEqual({ text: "", stopped: false });
    expect(matcher.finish()).toBe("\n");
  });

  test("after the match is swallowed", () => {
    const matcher = new StopMatcher(["x"]);
    matcher.push("ax");
    expect(matcher.push("more")).toEqual({ text: "", stopped: true });
    expect(matcher.finish()).toBe("");
  });

  test("passes unchanged without stop strings; an empty one is refused", () => {
    expect(inPieces([], ["a", "b"])).toEqual({ text: "ab", stopped: false });
    expect(() => new StopMatcher([""])).toThrow(RangeError);
  });
});
