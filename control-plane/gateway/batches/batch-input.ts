import { createHash } from "node:crypto";
import type { BatchFault, BatchRecord } from "#protocol/batch-entry.ts";
import { MargayError } from "#protocol/errors.ts";
import type { FileStore } from "../files/file-store.ts";
import { readLine } from "./batch-line.ts";
import { type InputLine, inputLines } from "./input-lines.ts";

/** Most requests of one batch, and most faults that are told of one. */
export const MAX_LINES = 50_000;
const MAX_FAULTS = 100;

interface Checked {
  readonly lines: number;
  readonly faults: readonly BatchFault[];
}

/** Reads the whole input, a line at a time, and says how many requests it has, and what is wrong with it. */
export async function checkInput(
  files: FileStore,
  { tenant, inputFile, endpoint }: BatchRecord,
  nowMs: number,
  maxLineBytes: number,
): Promise<Checked> {
  const whole = (code: string, message: string): Checked => ({
    lines: 0,
    faults: [{ code, message, param: "input_file_id", line: null }],
  });
  const gone = whole("file_not_found", "The input file is not there any more.");
  if ((await files.find(tenant, inputFile, nowMs)) === null) return gone;
  const ids = new Set<string>();
  const faults: BatchFault[] = [];
  let lines = 0;
  try {
    for await (const line of inputLines(files.parts(tenant, inputFile), maxLineBytes)) {
      if (++lines > MAX_LINES) return whole("too_many_lines", `A batch must have at most ${MAX_LINES} requests.`);
      const fault = faultOf(line, endpoint, ids);
      if (fault !== null && faults.push(fault) === MAX_FAULTS) break;
    }
  } catch (error) {
    if (error instanceof MargayError && error.code === "not_found") return gone;
    throw error;
  }
  return lines === 0 ? whole("empty_file", "The input file has no requests.") : { lines, faults };
}

function faultOf(input: InputLine, endpoint: BatchRecord["endpoint"], ids: Set<string>): BatchFault | null {
  const read = readLine(input, endpoint);
  if ("fault" in read) return read.fault;
  const id = createHash("sha256").update(read.line.custom_id).digest("base64").slice(0, 22);
  if (ids.has(id)) {
    const message = "custom_id must not be that of another line.";
    return { code: "duplicate_custom_id", message, param: "custom_id", line: input.number };
  }
  ids.add(id);
  return null;
}
