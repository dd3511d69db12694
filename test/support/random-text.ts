import type { Random } from "#service/clock.ts";

const ranges = [
  [0x20, 0x60],
  [0x80, 0x700],
  [0x660, 10],
  [0x4e00, 5000],
  [0x1f600, 80],
  [0x20, 1],
] as const;
const oddities = "\t\n\r\u0000\u0085\u00a0\u2028\u3000\ufeff\u200b½Ⅷ零\ufdd0\ufffd\u{1f468}\u200d\u{1f469}";

/** Text of all scripts, odd white space and, here and there, one of `words` whole or cut. Always well-formed. */
export function randomText(random: Random, words: readonly string[], length = 30): string {
  const below = (n: number) => Math.floor(random.uniform() * n);
  let text = "";
  for (let i = below(length); i >= 0; i--) {
    const kind = below(10);
    const word = words[below(Math.max(1, words.length))];
    if (kind === 0 && word !== undefined) text += below(2) === 0 ? word : word.slice(0, 1 + below(word.length));
    else if (kind === 1) text += [...oddities][below([...oddities].length)];
    else {
      const [from, size] = ranges[below(ranges.length)]!;
      text += String.fromCodePoint(from + below(size));
    }
  }
  return text;
}
