/** Digest of no text. */
export const EMPTY_DIGEST = 0x811c9dc5;

/** Digest of a text with one more token. */
export function extendDigest(digest: number, token: number): number {
  return Math.imul(digest ^ token, 0x01000193);
}
