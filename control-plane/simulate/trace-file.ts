import { readFileSync } from "node:fs";
import { z } from "zod";
import { namedRandom } from "./seeded-random.ts";

/** One request of a trace. */
export interface TraceRequest {
  readonly atMs: number;
  readonly promptTokens: number;
  /** Of the prompt, what an endless prefix cache of the whole fleet would have had. */
  readonly cachedTokens: number;
  readonly outputTokens: number;
  /** Of its prompt's blocks of 512 tokens: equal ones are equal text. Not every trace has them. */
  readonly hashIds?: readonly number[];
}

/** Tokens that one of Mooncake's hash ids stands for. */
const HASH_TOKENS = 512;

const MooncakeLine = z.looseObject({
  timestamp: z.number().min(0),
  input_length: z.int().min(1),
  output_length: z.int().min(0),
  hash_ids: z.array(z.int()),
});

/**
 * Reads a trace in order of time: Mooncake's (`.jsonl`: timestamp in ms, lengths, hash ids) or Azure's (`.csv`: TIMESTAMP,
 * ContextTokens, GeneratedTokens). Throws one sentence with file and line.
 */
export function readTrace(file: string): readonly TraceRequest[] {
  const lines = readFileSync(file, "utf8").split("\n");
  const requests = file.endsWith(".csv") ? readAzure(file, lines) : readMooncake(file, lines);
  if (requests.length === 0) throw new Error(`${file} holds no requests`);
  return requests.sort((a, b) => a.atMs - b.atMs);
}

function readMooncake(file: string, lines: readonly string[]): TraceRequest[] {
  const seen = new Set<number>();
  return lines.flatMap((line, index) => {
    if (line.trim() === "") return [];
    let parsed: z.output<typeof MooncakeLine>;
    try {
      parsed = MooncakeLine.parse(JSON.parse(line));
    } catch {
      throw new Error(`${file}:${index + 1}: no request of a Mooncake trace`);
    }
    const { timestamp: atMs, input_length: promptTokens, output_length, hash_ids: ids } = parsed;
    const first = ids.findIndex((id) => !seen.has(id));
    const known = first < 0 ? ids.length : first;
    for (const id of ids) seen.add(id);
    const cachedTokens = Math.min(known * HASH_TOKENS, promptTokens - 1);
    return [{ atMs, promptTokens, cachedTokens, outputTokens: Math.max(1, output_length), hashIds: ids }];
  });
}

function readAzure(file: string, lines: readonly string[]): TraceRequest[] {
  const rows = lines.slice(1).flatMap((line, index) => {
    if (line.trim() === "") return [];
    const [time, context, generated] = line.split(",");
    const at = Date.parse(`${time?.replace(" ", "T")}Z`);
    const promptTokens = Number(context);
    const outputTokens = Number(generated);
    if (Number.isNaN(at) || !(promptTokens >= 1) || !(outputTokens >= 0)) {
      throw new Error(`${file}:${index + 2}: no request of an Azure trace`);
    }
    return [{ atMs: at, promptTokens, cachedTokens: 0, outputTokens: Math.max(1, outputTokens) }];
  });
  const firstMs = rows.reduce((least, { atMs }) => Math.min(least, atMs), Number.POSITIVE_INFINITY);
  return rows.map((row) => ({ ...row, atMs: row.atMs - firstMs }));
}

/**
 * A trace is a cut out of traffic that went on before: its first `ms` are played ahead of it, so that a fleet that is
 * judged from `ms` on is one that serves already.
 */
export function withLeadIn(trace: readonly TraceRequest[], ms: number): readonly TraceRequest[] {
  return [
    ...trace.filter(({ atMs }) => atMs < ms),
    ...trace.map((request) => ({ ...request, atMs: request.atMs + ms })),
  ];
}

/** So many fleets' worth of traffic: copies of the trace, each shifted by up to a minute. */
export function multiplied(trace: readonly TraceRequest[], copies: number, seed = 1): readonly TraceRequest[] {
  const random = namedRandom(seed, "copies");
  const all: TraceRequest[] = [];
  for (let copy = 0; copy < copies; copy++) {
    const shiftMs = copy === 0 ? 0 : random.uniform() * 60_000;
    for (const request of trace) all.push({ ...request, atMs: request.atMs + shiftMs });
  }
  return all.sort((a, b) => a.atMs - b.atMs);
}
