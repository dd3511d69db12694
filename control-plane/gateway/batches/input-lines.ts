import type { FilePart } from "#protocol/file-entry.ts";

/** A line of a file that is not blank. */
export interface InputLine {
  /** Its place among those, from 0. */
  readonly index: number;
  /** Its place among all lines, from 1. */
  readonly number: number;
  /** null: it is longer than a line may be. */
  readonly text: string | null;
}

const NEW_LINE = 0x0a;

/** The lines of a body, one at a time; holds no more of it than a piece and a line of at most `maxBytes`. */
export async function* inputLines(parts: AsyncIterable<FilePart>, maxBytes: number): AsyncGenerator<InputLine> {
  let held: Uint8Array[] = [];
  let bytes = 0;
  let index = 0;
  let number = 0;
  const add = (piece: Uint8Array) => {
    bytes += piece.byteLength;
    if (bytes <= maxBytes) held.push(piece);
    else held = [];
  };
  const take = (): InputLine | null => {
    number++;
    const text = bytes > maxBytes ? null : Buffer.concat(held).toString("utf8");
    [held, bytes] = [[], 0];
    return text?.trim() === "" ? null : { index: index++, number, text };
  };
  for await (const part of parts) {
    let from = 0;
    for (let at = part.bytes.indexOf(NEW_LINE); at >= 0; at = part.bytes.indexOf(NEW_LINE, from)) {
      add(part.bytes.subarray(from, at));
      from = at + 1;
      const line = take();
      if (line !== null) yield line;
    }
    add(part.bytes.subarray(from));
  }
  const last = bytes === 0 ? null : take();
  if (last !== null) yield last;
}
