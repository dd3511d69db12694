import { asMargayError, MargayError } from "#protocol/errors.ts";
import type { Clock } from "#service/clock.ts";
import { type FileStore, PART_BYTES } from "../files/file-store.ts";

/** Longest time a piece is tried to be written while the bus is away, and the pause between two attempts. */
const PATIENCE_MS = 30_000;
const PAUSE_MS = 250;
/** Most bytes of one line: what fits into a message, with room for what goes with it. */
export const MAX_LINE_BYTES = 7 * 1024 * 1024;

interface Waiting {
  readonly index: number;
  readonly bytes: Uint8Array;
  readonly written: () => void;
  readonly failed: (error: MargayError) => void;
}

/** Whose file it is, and where it is kept. */
export interface AnswerFileParts {
  readonly files: FileStore;
  readonly clock: Clock;
  readonly tenant: string;
  readonly id: string;
}

/**
 * Owns the writing of one file of a batch's answers: one piece at a time is on its way, and what comes meanwhile is in the
 * next.
 *
 *   made -> taken over -> (writing -> written)* -> lost
 *
 * A1 A piece holds whole lines and says which: a line is in the file if and only if its piece was written.
 * A2 Taking over appends an empty piece: whoever wrote before cannot write behind it, and what it wrote is known.
 */
export class AnswerFile {
  readonly #parts: AnswerFileParts;
  #after = 0;
  #number = 0;
  #size = 0;
  #answered = 0;
  #waiting: Waiting[] = [];
  #writing = false;
  #lost: MargayError | null = null;

  constructor(parts: AnswerFileParts) {
    this.#parts = parts;
  }

  /** Its name and its bytes. */
  get id(): string {
    return this.#parts.id;
  }
  get size(): number {
    return this.#size;
  }

  /** Lines that are in it. */
  get answered(): number {
    return this.#answered;
  }

  /** Makes this the file's only writer, and tells the lines that are in it. */
  async takeOver(onLine: (index: number) => void): Promise<void> {
    const { files, tenant, id } = this.#parts;
    for (let mine = false; !mine; ) {
      const last = await files.lastPart(tenant, id);
      const part = this.#part((last?.value.number ?? -1) + 1, last?.value.size ?? 0, last?.value.answered ?? 0);
      const seq = await files.append(tenant, id, last?.seq ?? 0, part);
      mine = seq !== null;
      if (seq === null) continue;
      [this.#after, this.#number, this.#size, this.#answered] = [seq, part.number + 1, part.size, part.answered];
    }
    for await (const { lines } of files.parts(tenant, id)) for (const index of lines) onLine(index);
  }

  /** Resolves once the line is kept. Rejects where this is the writer no more, or nothing can be kept. */
  write(index: number, line: string): Promise<void> {
    return new Promise((written, failed) => {
      this.#waiting.push({ index, bytes: Buffer.from(line), written, failed });
      void this.#write();
    });
  }

  async #write(): Promise<void> {
    if (this.#writing) return;
    this.#writing = true;
    // What is written in one turn goes into one piece.
    await null;
    while (this.#waiting.length > 0) {
      const some = this.#next();
      try {
        if (this.#lost !== null) throw this.#lost;
        await this.#append(some);
        for (const { written } of some) written();
      } catch (error) {
        this.#lost = asMargayError(error);
        for (const { failed } of some) failed(this.#lost);
      }
    }
    this.#writing = false;
  }

  #next(): readonly Waiting[] {
    let bytes = this.#waiting[0]!.bytes.byteLength;
    let count = 1;
    while (count < this.#waiting.length && bytes + this.#waiting[count]!.bytes.byteLength <= PART_BYTES) {
      bytes += this.#waiting[count++]!.bytes.byteLength;
    }
    return this.#waiting.splice(0, count);
  }

  async #append(some: readonly Waiting[]): Promise<void> {
    const { files, clock, tenant, id } = this.#parts;
    const bytes = Buffer.concat(some.map((one) => one.bytes));
    const part = {
      ...this.#part(this.#number, this.#size + bytes.byteLength, this.#answered + some.length),
      ...{ bytes: new Uint8Array(bytes), lines: Int32Array.from(some, ({ index }) => index) },
    };
    const untilMs = clock.monotonic() + PATIENCE_MS;
    for (;;) {
      try {
        const seq = await files.append(tenant, id, this.#after, part);
        // It may be this very piece, where the answer to it was lost: whoever takes over will find it.
        if (seq === null) throw new MargayError("cancelled", "Somebody else writes the answers of this batch.");
        [this.#after, this.#number, this.#size, this.#answered] = [seq, part.number + 1, part.size, part.answered];
        return;
      } catch (thrown) {
        const error = asMargayError(thrown);
        if (error.code !== "bus_unavailable" || clock.monotonic() > untilMs) throw error;
        await clock.sleep(PAUSE_MS);
      }
    }
  }

  #part(number: number, size: number, answered: number) {
    const writer = this.#parts.files.gatewayId;
    return { number, writer, bytes: new Uint8Array(0), size, lines: new Int32Array(0), answered };
  }
}
