/**
 * The alphabet of byte-level vocabularies: every byte is written as one printable character. Bytes that print stand for
 * themselves, the other 68 take the characters from U+0100 on, in order.
 */
function charactersOfBytes(): readonly string[] {
  const prints = (byte: number) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(prints(byte) ? byte : next++));
}

/** Character of each byte. */
export const BYTE_CHARACTERS: readonly string[] = charactersOfBytes();

const byteOf = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));
const utf8 = new TextEncoder();

/** Bytes that a vocabulary entry stands for; an entry with a character outside the alphabet stands for its UTF-8. */
export function bytesOfEntry(entry: string): Uint8Array {
  const bytes = new Uint8Array(entry.length);
  for (let i = 0; i < entry.length; i++) {
    const byte = byteOf.get(entry[i]!);
    if (byte === undefined) return utf8.encode(entry);
    bytes[i] = byte;
  }
  return bytes;
}
