import { expect, test } from "vitest";
import { decode, encode, MAX_MESSAGE_BYTES } from "#protocol/bus/wire.ts";

test("plain values come back as they were", () => {
  const message = { a: [1, -1, 2.5, 2 ** 40, -(2 ** 40), null, true, "žluť 🐈"], b: { c: {} }, d: [] };
  expect(decode(encode(message))).toEqual(message);
});

test.each([0, 1, 7, 8, 9, 1000])("typed arrays of %i elements come back typed, equal and owned", (length) => {
  const ints = Int32Array.from({ length }, (_, i) => (i % 2 === 0 ? i * 123_457 : -i * 98_765_431));
  const floats = Float32Array.from({ length }, (_, i) => (i - 3.25) / 7);
  const bytes = Uint8Array.from({ length }, (_, i) => i * 37);
  const encoded = encode({ pad: "x", ints, floats, bytes });
  const back = decode(encoded) as { ints: Int32Array; floats: Float32Array; bytes: Uint8Array };
  expect(back).toEqual({ pad: "x", ints, floats, bytes });
  encoded.fill(0);
  expect(back).toEqual({ pad: "x", ints, floats, bytes });
  for (const array of [back.ints, back.floats, back.bytes]) {
    expect(array.byteOffset).toBe(0);
    expect(array.buffer.byteLength).toBe(array.byteLength);
  }
});

test("extreme numbers survive in typed arrays of every size", () => {
  const ints = [2 ** 31 - 1, -(2 ** 31), -1, 0];
  const floats = [Number.NEGATIVE_INFINITY, Math.fround(-1e-45), -0, 3.4028234663852886e38];
  for (const times of [1, 10]) {
    const message = {
      ints: Int32Array.from(Array(times).fill(ints).flat()),
      floats: Float32Array.from(Array(times).fill(floats).flat()),
    };
    expect(decode(encode(message))).toEqual(message);
  }
});

test("a view into a larger buffer sends only its own part", () => {
  const all = Int32Array.from({ length: 100 }, (_, i) => i);
  expect(decode(encode(all.subarray(20, 60)))).toEqual(all.slice(20, 60));
  expect(decode(encode(all.subarray(20, 22)))).toEqual(all.slice(20, 22));
});

test.each([
  ["undefined at the top", undefined, "undefined"],
  ["an undefined field", { inner: { seq: undefined } }, "field seq"],
  ["undefined in an array", { list: [1, undefined] }, "undefined in an array"],
  ["a Date", { at: new Date() }, "Date"],
  ["a Map", new Map(), "Map"],
  ["another typed array", { values: new Float64Array(1) }, "Float64Array"],
])("%s is refused by name", (_, message, words) => {
  expect(() => encode(message)).toThrow(words);
});

test("a prompt of the longest context fits, a message above the limit is refused with both sizes", () => {
  expect(encode({ tokens: new Int32Array(131_072) }).byteLength).toBeLessThan(600_000);
  const bytes = new Uint8Array(MAX_MESSAGE_BYTES);
  expect(() => encode({ bytes })).toThrow(/83886\d\d bytes exceeds the bus limit of 8388608 bytes/);
  expect(decode(encode({ small: 1 }))).toEqual({ small: 1 });
});

test("bytes that are not one whole message are refused", () => {
  const good = encode({ tokens: new Int32Array(20) });
  for (let length = 0; length < good.length; length++) expect(() => decode(good.subarray(0, length))).toThrow();
  expect(() => decode(Uint8Array.of(...good, 0))).toThrow("not a wire message");
  expect(() => decode(Uint8Array.of(0xd4, 9, 0))).toThrow("extension 9");
  expect(() => decode(Uint8Array.of(0xc7, 3, 1, 1, 2, 3))).toThrow("4-byte");
  expect(() => decode(Uint8Array.of(0xdd, 0xff, 0xff, 0xff, 0xff))).toThrow("not a wire message");
  expect(decode(good)).toEqual({ tokens: new Int32Array(20) });
});
