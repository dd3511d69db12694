/** Length of the longest end of `text` that may be the beginning of one of `tags`: what must wait for more text. */
export function heldTail(text: string, tags: readonly string[]): number {
  let longest = 0;
  for (const tag of tags) {
    for (let length = Math.min(tag.length - 1, text.length); length > longest; length--) {
      if (text.endsWith(tag.slice(0, length))) longest = length;
    }
  }
  return longest;
}

/** The tag that begins first in `text`; null when none of `tags` is there. */
export function firstTag(text: string, tags: readonly string[]): { readonly tag: string; readonly at: number } | null {
  let first: { readonly tag: string; readonly at: number } | null = null;
  for (const tag of tags) {
    const at = text.indexOf(tag);
    if (at >= 0 && (first === null || at < first.at)) first = { tag, at };
  }
  return first;
}
