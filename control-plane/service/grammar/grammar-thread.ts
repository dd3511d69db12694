import { parentPort, workerData } from "node:worker_threads";
import { GrammarLibrary, type TextMatcher } from "./grammar-library.ts";
import type { GrammarAnswer, GrammarQuestion, GrammarThreadData, TextMask } from "./grammar-messages.ts";

/** The program of a grammar thread (see grammars.ts): answers questions one by one, ends at the first fault. */

const port = parentPort!;
const said: string[] = [];
// The library prints why it gives up, and what it finds odd.
console.error = (...words: unknown[]) => void said.push(words.join(" "));
console.warn = () => {};

const answer = (message: GrammarAnswer) => port.postMessage(message);
const texts = new Map<number, TextMatcher>();

/** The library's own sentence, without the place in its source. */
function sentence(thrown: unknown): string {
  const last = said.filter((line) => line.includes("[FATAL]")).at(-1);
  const words = last?.replace(/^.*?\.(cc|h):\d+: /, "").replace(/^Check failed: .*? is false: /, "");
  return (words ?? (thrown instanceof Error ? thrown.message : "not understood")).trim().slice(0, 300);
}

async function obey(library: GrammarLibrary, question: GrammarQuestion): Promise<void> {
  if (question.kind === "vet") {
    await library.compile(question.grammar);
    answer({ kind: "vetted" });
  } else if (question.kind === "open") {
    const { id, grammar, ends, tokens } = question;
    const matcher = await library.follow(grammar, ends);
    texts.set(id, matcher);
    const mask = tokens.every((token) => matcher.accept(token)) ? await matcher.mask() : null;
    answer({ kind: "masks", masks: [{ id, mask }] });
  } else if (question.kind === "accept") {
    const masks: TextMask[] = [];
    for (const [i, id] of question.ids.entries()) {
      const matcher = texts.get(id);
      if (matcher === undefined) continue;
      masks.push({ id, mask: matcher.accept(question.tokens[i]!) ? await matcher.mask() : null });
    }
    answer({ kind: "masks", masks });
  } else {
    texts.get(question.id)?.dispose();
    texts.delete(question.id);
  }
}

const { folder, vocabSize } = workerData as GrammarThreadData;
try {
  const library = await GrammarLibrary.open(folder, vocabSize);
  let last = Promise.resolve();
  port.on("message", (question: GrammarQuestion) => {
    last = last.then(() => obey(library, question)).catch(fail);
  });
  answer({ kind: "ready" });
} catch (thrown) {
  fail(thrown);
}

function fail(thrown: unknown): void {
  answer({ kind: "fault", sentence: sentence(thrown) });
  port.close();
}
