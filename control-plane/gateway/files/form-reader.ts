import { refuse } from "../http-errors.ts";

/** A field of a form, or a file in it. */
export interface FormPart {
  readonly name: string;
  /** null: it is no file. */
  readonly filename: string | null;
  /** To be read, to its end, before the next part. */
  readonly body: AsyncIterable<Uint8Array>;
}

/** Bytes of one part's headers, and parts of one form. */
const MAX_HEADER_BYTES = 8 * 1024;
const MAX_PARTS = 32;
const BREAK = Buffer.from("\r\n");
const BLANK_LINE = Buffer.from("\r\n\r\n");

/** The boundary that a `content-type` names. Throws `invalid_request`. */
export function boundaryOf(contentType: string | undefined): string {
  const found = /^multipart\/form-data\s*;.*?\bboundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))/i.exec(contentType ?? "");
  const boundary = found?.[1] ?? found?.[2];
  if (boundary === undefined) throw refuse("file", "must come in a multipart/form-data body with a boundary");
  return boundary;
}

/**
 * Reads a form (RFC 7578) as it comes in, holding little more than one chunk of it.
 *
 *   preamble -> (headers -> body)* -> end
 */
export class FormReader {
  readonly #source: AsyncIterator<Uint8Array>;
  readonly #delimiter: Buffer;
  #held: Buffer = BREAK;

  constructor(source: AsyncIterable<Uint8Array>, boundary: string) {
    this.#source = source[Symbol.asyncIterator]();
    this.#delimiter = Buffer.from(`\r\n--${boundary}`, "latin1");
  }

  /** Throws `invalid_request` where the bytes are no form. */
  async *parts(): AsyncGenerator<FormPart> {
    await drop(this.#upTo(this.#delimiter));
    for (let count = 0; ; count++) {
      const mark = await this.#take(2);
      if (mark === "--") return;
      if (mark !== "\r\n") throw malformed();
      if (count === MAX_PARTS) throw refuse("file", `must come in a form of at most ${MAX_PARTS} parts`);
      const headers = await this.#headers();
      const body = this.#upTo(this.#delimiter);
      yield { ...disposition(headers), body };
      await drop(body);
    }
  }

  async #headers(): Promise<string> {
    // Where there are none, the blank line follows at once.
    this.#held = Buffer.concat([BREAK, this.#held]);
    const pieces: Uint8Array[] = [];
    let bytes = 0;
    for await (const piece of this.#upTo(BLANK_LINE)) {
      bytes += piece.byteLength;
      if (bytes > MAX_HEADER_BYTES) throw malformed();
      pieces.push(piece);
    }
    return Buffer.concat(pieces).toString("utf8");
  }

  /** What comes before `mark`, which is skipped. */
  async *#upTo(mark: Buffer): AsyncGenerator<Uint8Array> {
    for (;;) {
      const at = this.#held.indexOf(mark);
      if (at >= 0) {
        const piece = this.#held.subarray(0, at);
        this.#held = this.#held.subarray(at + mark.byteLength);
        if (at > 0) yield piece;
        return;
      }
      // The mark may have begun at the end of what is held.
      const sure = this.#held.byteLength - mark.byteLength + 1;
      if (sure > 0) {
        const piece = this.#held.subarray(0, sure);
        this.#held = this.#held.subarray(sure);
        yield piece;
      }
      await this.#fill();
    }
  }

  async #take(bytes: number): Promise<string> {
    while (this.#held.byteLength < bytes) await this.#fill();
    const text = this.#held.toString("latin1", 0, bytes);
    this.#held = this.#held.subarray(bytes);
    return text;
  }

  async #fill(): Promise<void> {
    const next = await this.#source.next();
    if (next.done === true) throw malformed();
    this.#held = Buffer.concat([this.#held, next.value]);
  }
}

async function drop(body: AsyncIterable<Uint8Array>): Promise<void> {
  for await (const _ of body);
}

function disposition(headers: string): { readonly name: string; readonly filename: string | null } {
  const line = /(?:^|\r\n)content-disposition:\s*form-data\s*;([^\r\n]*)/i.exec(headers)?.[1];
  const name = line === undefined ? undefined : parameter(line, "name");
  if (name === undefined) throw malformed();
  return { name, filename: parameter(line!, "filename") ?? null };
}

function parameter(line: string, name: string): string | undefined {
  const found = new RegExp(`(?:^|;)\\s*${name}=(?:"((?:[^"\\\\]|\\\\.)*)"|([^\\s;"]+))`, "i").exec(line);
  return (found?.[1]?.replaceAll(/\\(.)/g, "$1") ?? found?.[2])?.replaceAll("%22", '"');
}

function malformed() {
  return refuse("file", "must come in a whole and well-formed multipart/form-data body");
}
