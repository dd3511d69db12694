import type { BatchFault, BatchStep } from "#protocol/batch-entry.ts";
import { asMargayError, MargayError } from "#protocol/errors.ts";
import { KEY_REVOKED, type Tenancy } from "../../tenancy/tenancy.ts";
import type { FileStore } from "../files/file-store.ts";
import { AnswerFile, MAX_LINE_BYTES } from "./answer-file.ts";
import { checkInput } from "./batch-input.ts";
import { type Outcome, outcomeLine, readLine, wentWell } from "./batch-line.ts";
import type { BatchLog, BatchPlace } from "./batch-log.ts";
import { type BatchState, stateAfter } from "./batch-state.ts";
import { type InputLine, inputLines } from "./input-lines.ts";
import { type LineHost, serveLine } from "./line-service.ts";
import { Slots } from "./slots.ts";

/** What working on a batch takes. */
export interface BatchHost extends LineHost {
  readonly log: BatchLog;
  readonly files: FileStore;
  readonly tenancy: Tenancy;
  /** Lines of one batch that are under way at a time. */
  readonly lines: number;
  readonly maxLineBytes: number;
}

const LOOK_MS = 2_000;
/** Longest time a step is tried to be written while the bus is away, and the pause between two attempts. */
const PATIENCE_MS = 30_000;
const PAUSE_MS = 250;

/** Why lines get no answer any more, what they are told, and how the batch then ends. */
const STOPS = {
  cancelled: { code: "batch_cancelled", message: "The batch was cancelled before this request was answered." },
  expired: { code: "batch_expired", message: "This request could not be answered within the completion window." },
  failed: { code: "invalid_api_key", message: KEY_REVOKED },
} as const;
type Stop = keyof typeof STOPS;

/**
 * Owns the work on one batch that this process claimed.
 *
 *   claimed -> (input checked -> begun) -> lines answered -> finalized -> ended | left to another
 *
 * R1 Each line has one answer in one of two files: what is there is known before the first line is asked.
 * R2 As many lines are under way as the host says, and no more of the input or of the answers is held.
 * R3 Cancelled, out of time, or without its key, the batch ends with an answer for each line all the same.
 * R4 Who lost the batch writes nothing more: steps and answers go behind the last one that this process knows.
 */
export class BatchRun {
  readonly #host: BatchHost;
  readonly #place: BatchPlace;
  readonly #claim: number;
  readonly #output: AnswerFile;
  readonly #errors: AnswerFile;
  readonly #halt = new AbortController();
  #state: BatchState;
  #stop: Stop | null = null;
  #leaving = false;

  /** `state`: as it is with this process's claim. */
  constructor(host: BatchHost, place: BatchPlace, state: BatchState) {
    this.#host = host;
    this.#place = place;
    this.#state = state;
    this.#claim = state.lastSeq;
    const { tenant, outputFile, errorFile } = state.record;
    const common = { files: host.files, clock: host.clock, tenant };
    this.#output = new AnswerFile({ ...common, id: outputFile });
    this.#errors = new AnswerFile({ ...common, id: errorFile });
  }

  /** Begins no more lines: those under way are answered, and the rest is left to another process. */
  leave(): void {
    this.#leaving = true;
  }

  /** Drops what is under way. */
  drop(error: MargayError): void {
    this.#leaving = true;
    this.#halt.abort(error);
  }

  /** Rejects where the batch is lost or cannot be worked on now; somebody goes on with it. */
  async run(): Promise<void> {
    const looks = this.#host.clock.every(LOOK_MS, () => void this.#look());
    try {
      this.#judge();
      if (this.#state.total === null && !(await this.#begin())) return;
      const done = new Uint8Array(this.#state.total!);
      const onLine = (index: number) => {
        done[index] = 1;
      };
      await this.#output.takeOver(onLine);
      await this.#errors.takeOver(onLine);
      await this.#answerAll(done);
      if (this.#leaving) await this.#note({ kind: "left" });
      else await this.#finish(done.every((one) => one === 1) ? [] : [INPUT_GONE]);
    } finally {
      looks.cancel();
    }
  }

  /** False: the batch is over before it began. */
  async #begin(): Promise<boolean> {
    const { files, clock, maxLineBytes } = this.#host;
    const { record } = this.#state;
    const found = this.#stop === null ? await checkInput(files, record, clock.now(), maxLineBytes) : null;
    this.#halt.signal.throwIfAborted();
    if (found !== null && found.faults.length === 0) {
      await this.#note({ kind: "begun", total: found.lines });
      return true;
    }
    await this.#end(found === null ? this.#stop! : "failed", found?.faults ?? []);
    return false;
  }

  async #answerAll(done: Uint8Array): Promise<void> {
    const { files, lines, maxLineBytes } = this.#host;
    const { tenant, inputFile } = this.#state.record;
    const slots = new Slots(lines);
    let lost: MargayError | null = null;
    for await (const line of inputLines(files.parts(tenant, inputFile), maxLineBytes)) {
      if (done[line.index] === 1) continue;
      await slots.take();
      if (this.#leaving || lost !== null) {
        slots.give();
        break;
      }
      this.#answer(line)
        .then(() => {
          done[line.index] = 1;
        })
        .catch((error: unknown) => {
          lost ??= asMargayError(error);
          this.drop(lost);
        })
        .finally(() => slots.give());
    }
    await slots.allFree();
    if (lost !== null) throw lost;
  }

  async #answer(input: InputLine): Promise<void> {
    const { id } = this.#place;
    const read = readLine(input, this.#state.record.endpoint);
    // It was read before the batch began.
    if ("fault" in read) throw new MargayError("internal", `line ${input.number} of ${id} changed`);
    const outcome = await this.#outcome(input.index, read.line);
    const name = `batch_req_${id.slice("batch_".length)}${input.index.toString(16).padStart(6, "0")}`;
    const customId = read.line.custom_id;
    const text = outcomeLine(name, customId, outcome);
    const fits = Buffer.byteLength(text) <= MAX_LINE_BYTES;
    const file = fits && wentWell(outcome) ? this.#output : this.#errors;
    await file.write(input.index, fits ? text : outcomeLine(name, customId, TOO_LARGE));
  }

  async #outcome(index: number, line: Parameters<typeof serveLine>[1]["line"]): Promise<Outcome> {
    const { tenancy } = this.#host;
    const caller = () => {
      const found = tenancy.recall(this.#state.record.keyDigest);
      if (found === null) throw new MargayError("invalid_api_key", KEY_REVOKED);
      return found;
    };
    try {
      if (this.#stop !== null) return { kind: "unanswered", ...STOPS[this.#stop] };
      const ask = { batch: this.#place.id, index, line, claim: this.#claim, caller, signal: this.#halt.signal };
      return await serveLine(this.#host, ask);
    } catch (thrown) {
      const error = asMargayError(thrown);
      if (error.code === "invalid_api_key") this.#halted("failed");
      if (error.code === "shutting_down") this.leave();
      if (this.#stop === null) throw error;
      return { kind: "unanswered", ...STOPS[this.#stop] };
    }
  }

  async #finish(faults: readonly BatchFault[]): Promise<void> {
    const { files, clock } = this.#host;
    const { record } = this.#state;
    await this.#note({ kind: "finalizing" });
    for (const [file, kind] of [
      [this.#output, "output"],
      [this.#errors, "error"],
    ] as const) {
      if (file.answered === 0) {
        await files.remove(record.tenant, file.id);
        continue;
      }
      await files.publish(record.tenant, file.id, {
        ...{ filename: `${this.#place.id}_${kind}.jsonl`, purpose: "batch_output", bytes: file.size },
        ...{ createdAt: Math.floor(clock.now() / 1000), expiresAt: record.outputsExpireAt },
      });
    }
    await this.#end(this.#stop ?? (faults.length > 0 ? "failed" : "completed"), faults);
  }

  async #end(status: Stop | "completed", faults: readonly BatchFault[]): Promise<void> {
    const revoked = status === "failed" && this.#stop === "failed";
    const all = revoked ? [...faults, { ...STOPS.failed, param: null, line: null }] : [...faults];
    const counts = { completed: this.#output.answered, failed: this.#errors.answered };
    await this.#note({ kind: "ended", status, faults: all, ...counts });
    await this.#host.log.unmark(this.#place).catch(() => {});
  }

  /** Writes a step down, behind whatever others did meanwhile. */
  async #note(step: BatchStep): Promise<void> {
    const { log, clock } = this.#host;
    const untilMs = clock.monotonic() + PATIENCE_MS;
    while (this.#state.endedAt === null) {
      try {
        const entry = await log.append(this.#place, this.#state.lastSeq, step);
        if (entry !== null) {
          this.#state = stateAfter(this.#state, entry);
          return;
        }
        await this.#catchUp();
      } catch (thrown) {
        const error = asMargayError(thrown);
        if (error.code !== "bus_unavailable" || clock.monotonic() > untilMs) throw error;
        await clock.sleep(PAUSE_MS);
      }
    }
  }

  /** Rejects where the batch is somebody else's by now. */
  async #catchUp(): Promise<void> {
    const { log } = this.#host;
    for (const entry of await log.read(this.#place, this.#state.lastSeq)) {
      if (entry.seq > this.#state.lastSeq) this.#state = stateAfter(this.#state, entry);
    }
    const { owner, endedAt } = this.#state;
    if (owner !== log.gatewayId && endedAt === null) throw new MargayError("cancelled", "Somebody else has the batch.");
  }

  async #look(): Promise<void> {
    try {
      await this.#catchUp();
      this.#judge();
    } catch (error) {
      if (asMargayError(error).code === "cancelled") this.drop(asMargayError(error));
    }
  }

  #judge(): void {
    const { clock, tenancy } = this.#host;
    const { record, status } = this.#state;
    if (status === "cancelling") this.#halted("cancelled");
    else if (record.expiresAt * 1000 <= clock.now()) this.#halted("expired");
    else if (tenancy.recall(record.keyDigest) === null) this.#halted("failed");
  }

  /** Lines get no answer from here on but that. */
  #halted(stop: Stop): void {
    if (this.#stop !== null || this.#leaving) return;
    this.#stop = stop;
    this.#halt.abort(new MargayError("cancelled", STOPS[stop].message));
  }
}

const TOO_LARGE: Outcome = {
  kind: "unanswered",
  code: "answer_too_large",
  message: `The answer is larger than ${MAX_LINE_BYTES / 1_048_576} MiB, the most that a line of a file may have.`,
};

const INPUT_GONE: BatchFault = {
  ...{ code: "file_not_found", message: "The input file was deleted while the batch was worked on." },
  ...{ param: "input_file_id", line: null },
};
