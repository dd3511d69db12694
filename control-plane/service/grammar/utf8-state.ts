/** Where in a character a text of bytes is: 0 between two; else how many bytes are missing and what the next may be. */
export type Utf8State = 0 | { readonly missing: number; readonly low: number; readonly high: number };

const LOW = 0x80;
const HIGH = 0xbf;

/** The state after a first byte; null: no character begins with it. */
function begin(byte: number): Utf8State | null {
  if (byte < LOW) return 0;
  if (byte >= 0xc2 && byte <= 0xdf) return { missing: 1, low: LOW, high: HIGH };
  // No overlong spelling, no surrogate, nothing above U+10FFFF.
  if (byte >= 0xe0 && byte <= 0xef) {
    return { missing: 2, low: byte === 0xe0 ? 0xa0 : LOW, high: byte === 0xed ? 0x9f : HIGH };
  }
  if (byte < 0xf0 || byte > 0xf4) return null;
  return { missing: 3, low: byte === 0xf0 ? 0x90 : LOW, high: byte === 0xf4 ? 0x8f : HIGH };
}

/** The state after more bytes; null: they are no UTF-8. */
export function utf8After(state: Utf8State, bytes: Uint8Array): Utf8State | null {
  let now: Utf8State | null = state;
  for (const byte of bytes) {
    if (now === 0) now = begin(byte);
    else if (byte < now.low || byte > now.high) return null;
    else now = now.missing === 1 ? 0 : { missing: now.missing - 1, low: LOW, high: HIGH };
    if (now === null) return null;
  }
  return now;
}

/** Whether the bytes may stand somewhere in UTF-8, perhaps from the middle of a character on. */
export function mayBeUtf8(bytes: Uint8Array): boolean {
  let rest = 0;
  while (rest < Math.min(3, bytes.length) && bytes[rest]! >= LOW && bytes[rest]! <= HIGH) rest++;
  return utf8After(0, bytes.subarray(rest)) !== null;
}
