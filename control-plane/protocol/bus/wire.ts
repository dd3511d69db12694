import { Decoder, Encoder, ExtData } from "@msgpack/msgpack";
import { MargayError } from "../errors.ts";

/**
 * Messages as bytes: MessagePack, with one extension type per kind of typed array. Arrays come back as owned copies
 * at offset 0 of a buffer of their own, so they are aligned and outlive the network buffer they came from.
 */

/** Largest message, client and server alike: the prompt of the longest context (512 KiB of tokens) fits many times. */
export const MAX_MESSAGE_BYTES = 8 * 1024 * 1024;

const INT32 = 1;
const FLOAT32 = 2;
const UINT8 = 3;
/** An encoder never shrinks its buffer; one that had to grow beyond this is replaced. */
const KEEP_BUFFER_BYTES = 256 * 1024;

/**
 * Arrays of up to this many elements are moved element by element: V8 keeps them in its own heap, and touching
 * `.buffer` would move each of them out. A chunk of one token is the most frequent array by far.
 */
const FEW = 8;
const scratch = new DataView(new ArrayBuffer(4));

function bytesOf(array: Int32Array | Float32Array): Uint8Array {
  if (array.length > FEW) return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  const bytes = new Uint8Array(array.length * 4);
  for (let i = 0; i < array.length; i++) {
    let bits = array[i]!;
    if (array instanceof Float32Array) {
      scratch.setFloat32(0, bits);
      bits = scratch.getInt32(0);
    }
    bytes[4 * i] = bits;
    bytes[4 * i + 1] = bits >> 8;
    bytes[4 * i + 2] = bits >> 16;
    bytes[4 * i + 3] = bits >> 24;
  }
  return bytes;
}

function toInt32(data: Uint8Array): Int32Array {
  const count = wholeElements(data);
  if (count > FEW) return new Int32Array(new Uint8Array(data).buffer);
  const array = new Int32Array(count);
  for (let i = 0; i < count; i++) {
    array[i] = data[4 * i]! | (data[4 * i + 1]! << 8) | (data[4 * i + 2]! << 16) | (data[4 * i + 3]! << 24);
  }
  return array;
}

function toFloat32(data: Uint8Array): Float32Array {
  wholeElements(data);
  return new Float32Array(new Uint8Array(data).buffer);
}

function wholeElements(data: Uint8Array): number {
  if (data.byteLength % 4 === 0) return data.byteLength / 4;
  throw new MargayError("internal", `a typed array of ${data.byteLength} bytes is not made of 4-byte elements`);
}

const extensionCodec = {
  // Called for every object: the fast path is a plain object or array, which is only searched for `undefined`.
  tryToEncode(object: unknown): ExtData | null {
    if (Array.isArray(object)) {
      if (object.includes(undefined)) throw new MargayError("internal", "a message holds undefined in an array");
      return null;
    }
    if (ArrayBuffer.isView(object)) {
      if (object instanceof Int32Array) return new ExtData(INT32, bytesOf(object));
      if (object instanceof Float32Array) return new ExtData(FLOAT32, bytesOf(object));
      if (object instanceof Uint8Array) return new ExtData(UINT8, object);
      throw new MargayError("internal", `a message cannot hold a ${object.constructor.name}`);
    }
    const record = object as Record<string, unknown>;
    const prototype = Object.getPrototypeOf(record);
    if (prototype !== Object.prototype && prototype !== null) {
      throw new MargayError("internal", `a message cannot hold a ${record.constructor?.name ?? typeof object}`);
    }
    for (const key in record) {
      if (record[key] === undefined) throw new MargayError("internal", `field ${key} of a message is undefined`);
    }
    return null;
  },
  decode(data: Uint8Array, type: number): Int32Array | Float32Array | Uint8Array {
    switch (type) {
      case INT32:
        return toInt32(data);
      case FLOAT32:
        return toFloat32(data);
      case UINT8:
        return new Uint8Array(data);
      default:
        throw new MargayError("internal", `extension ${type} is not part of the wire format`);
    }
  },
};

const newEncoder = () => new Encoder({ extensionCodec: extensionCodec as never });
let encoder = newEncoder();
const decoder = new Decoder({
  extensionCodec: extensionCodec as never,
  maxArrayLength: 1 << 18,
  maxMapLength: 1 << 12,
});

/**
 * Bytes of `message`, owned by the caller. Throws `internal` when it holds `undefined` or anything but plain objects,
 * arrays, primitives and the three typed arrays, `payload_too_large` above MAX_MESSAGE_BYTES.
 */
export function encode(message: unknown): Uint8Array {
  if (message === undefined) throw new MargayError("internal", "a message is undefined");
  const bytes = encoder.encode(message);
  if (bytes.byteLength > KEEP_BUFFER_BYTES) encoder = newEncoder();
  if (bytes.byteLength > MAX_MESSAGE_BYTES) {
    throw new MargayError(
      "payload_too_large",
      `A message of ${bytes.byteLength} bytes exceeds the bus limit of ${MAX_MESSAGE_BYTES} bytes.`,
    );
  }
  return bytes;
}

/** What `encode` was given. Throws `internal` on bytes that are not one whole message. */
export function decode(bytes: Uint8Array): unknown {
  try {
    return decoder.decode(bytes);
  } catch (error) {
    if (error instanceof MargayError) throw error;
    throw new MargayError("internal", `not a wire message: ${error instanceof Error ? error.message : error}`);
  }
}
