/** Something that became known about the call in a block. */
export type CallPiece = { readonly name: string } | { readonly arguments: string };

/** What reading more of a block brought. */
export interface BlockStep {
  readonly pieces: readonly CallPiece[];
  /** Text of the block that is no part of a call: it goes back to the answer's content. */
  readonly content: string;
  /** Text behind the block, once it ended; null while it goes on. */
  readonly rest: string | null;
}

/** Reads one `<longcat_tool_call>` block; the text pushed begins right behind the opening tag. */
export interface CallBlock {
  push(text: string): BlockStep;
  /** The answer ended inside the block: by itself (`ended`) or cut off. */
  finish(ended: boolean): BlockStep;
}

/** The name of a called function as it is told to the client: some models put its namespace in front. */
export function calledName(written: string): string | null {
  const name = written.trim().replace(/^functions\./, "");
  return /^[A-Za-z0-9_.:/-]{1,128}$/.test(name) ? name : null;
}
