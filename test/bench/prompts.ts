import { nanoModel } from "../support/dialogues.ts";
import { seeded } from "../support/storm.ts";

const WORDS = "the a small old red fox bear river house tree sees likes takes and then walks over under with many few";

/** Texts of exactly `length` tokens, no two of which begin alike: nothing of one is in a cache because of another. */
export class Prompts {
  readonly #random: () => number;
  #made = 0;

  constructor(seed: number) {
    this.#random = seeded(seed);
  }

  async next(length: number): Promise<{ readonly text: string; readonly tokens: Int32Array }> {
    const { tokenizer } = await nanoModel();
    const words = WORDS.split(" ");
    for (;;) {
      this.#made++;
      const start = [this.#made, ...Array.from({ length: 3 }, () => Math.floor(this.#random() * 1000))].join(" ");
      const rest = Array.from({ length: 2 * length }, () => words[Math.floor(this.#random() * words.length)]);
      const text = tokenizer.decode(tokenizer.encode(`${start} ${rest.join(" ")}`).subarray(0, length));
      const tokens = tokenizer.encode(text);
      if (tokens.length === length) return { text, tokens };
    }
  }
}
