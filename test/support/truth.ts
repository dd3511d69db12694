import { NANO, nanoModel } from "./dialogues.ts";
import { generationOf } from "./generation.ts";
import { generateTogether } from "./native-batch.ts";
import { NativeRank } from "./native-rank.ts";

/** What the bundled model answers greedily, computed in this process: no HTTP, no bus, no transfer, no cache of others. */
export interface Truth extends AsyncDisposable {
  /** The first `tokens` greedy tokens after a prompt, as text; end-of-text is not obeyed before. */
  complete(prompt: string, tokens: number): Promise<string>;
}

/** `modelFolder`: another checkpoint that has its tokenizer. */
export async function openTruth(modelFolder: string = NANO): Promise<Truth> {
  const model = await nanoModel();
  const rank = await NativeRank.open("prefill", { kvBlocks: 256, modelFolder });
  /** One at a time: steps of several answers do not share the queue. */
  let turn: Promise<unknown> = Promise.resolve();
  return {
    complete(prompt, tokens) {
      const generation = generationOf(model.tokenizer.encode(prompt), {
        maxNewTokens: tokens,
        sampling: { minNewTokens: tokens },
      });
      const made = turn.then(() => generateTogether(rank, [{ generation, attached: null }]));
      turn = made.catch(() => {});
      return made.then(([answer]) => model.tokenizer.decode(Int32Array.from(answer!.tokens)));
    },
    async [Symbol.asyncDispose]() {
      await rank.engine.close();
    },
  };
}
