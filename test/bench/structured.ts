import { startSystem } from "../support/system.ts";
import { closeConnections, streamCompletion } from "./http-stream.ts";
import type { BenchOptions } from "./options.ts";
import { Prompts } from "./prompts.ts";
import { machineLine, print, spread, summary } from "./report.ts";

const STREAMS = 16;
const PROMPT_TOKENS = 100;
const STREAM_TOKENS = 300;
/** Promised: tokens/s of masked streams as a share of free ones, and what one of them may cost the others. */
const MASKED_SHARE = 0.6;
const NEIGHBOUR_COST = 0.03;
const KNOWN_SCHEMA_MS = 1;

/** Letters, for longer than any stream here: its end mark is nothing the model would write. */
const LETTERS = 'root ::= [a-zA-Z ,.\']* "~~~~"';
const SCHEMA = { type: "object", properties: { name: { type: "string", maxLength: 8 } }, required: ["name"] };

/** Streams bound to a grammar beside free ones, by turns on one running system. */
export async function benchStructured(options: BenchOptions): Promise<void> {
  const system = await startSystem({ MARGAY_BACKEND: options.backend, MARGAY_THREADS: "0", MARGAY_LOG_LEVEL: "warn" });
  try {
    await Promise.all([system.ready("prefill", 1), system.ready("decode", 1)]);
    const prompts = new Prompts(options.quick ? 1 : Math.floor(performance.timeOrigin));
    await shares(system.url, prompts, options);
    await knownSchema(system.url, prompts, options);
  } finally {
    closeConnections();
    await system.stop();
  }
}

const free = (prompt: string) => ({ ...body(prompt, STREAM_TOKENS), min_tokens: STREAM_TOKENS });
const bound = (prompt: string) => ({ ...body(prompt, STREAM_TOKENS), guided_grammar: LETTERS });

function body(prompt: string, tokens: number) {
  return { model: "nano", prompt, temperature: 0, max_tokens: tokens };
}

async function shares(url: string, prompts: Prompts, options: BenchOptions): Promise<void> {
  /** Tokens/s of all streams together, and of the first STREAMS - 1 alone. */
  const run = async (masked: (stream: number) => boolean) => {
    const texts = await Promise.all(Array.from({ length: STREAMS }, () => prompts.next(PROMPT_TOKENS)));
    const answers = await Promise.all(
      texts.map(({ text }, stream) => streamCompletion(url, masked(stream) ? bound(text) : free(text))),
    );
    if (answers.some((answer) => answer.tokens !== STREAM_TOKENS)) throw new Error("a stream ended early");
    const rate = (some: typeof answers) =>
      (1000 * some.length * STREAM_TOKENS) / Math.max(...some.map((answer) => answer.endMs));
    return { all: rate(answers), others: rate(answers.slice(0, -1)) };
  };
  const none: number[] = [];
  const noneOthers: number[] = [];
  const all: number[] = [];
  const oneOthers: number[] = [];
  for (let round = -2; round < (options.quick ? 3 : 9); round++) {
    const [a, b, c] = [await run(() => false), await run(() => true), await run((stream) => stream === STREAMS - 1)];
    if (round < 0) continue;
    none.push(a.all);
    noneOthers.push(a.others);
    all.push(b.all);
    oneOthers.push(c.others);
  }
  const share = summary(all.map((rate, i) => rate / none[i]!)).p50;
  const cost = 1 - summary(oneOthers.map((rate, i) => rate / noneOthers[i]!)).p50;
  const row = (name: string, samples: readonly number[]) => [name, spread(summary(samples), 0)];
  print({
    title: "Streams bound to a grammar",
    machine: machineLine({ isa: options.backend, threads: 0 }),
    workload: `${STREAMS} streams over HTTP, ${PROMPT_TOKENS} prompt tokens, ${STREAM_TOKENS} generated greedily; none, all or one of them bound, by turns`,
    rows: [
      ["tokens/s", "median (least..most)"],
      row("all free", none),
      row("all bound", all),
      row("15 free ones beside a free one", noneOthers),
      row("15 free ones beside a bound one", oneOthers),
      ["bound / free", `${(100 * share).toFixed(1)} %`],
      ["what one costs the others", `${(100 * cost).toFixed(1)} %`],
    ],
    notMeasured: "the client's own CPU time. Free streams draft tokens, bound ones cannot.",
  });
  options.promises.check(
    `bound streams at least ${100 * MASKED_SHARE} % of free ones: ${(100 * share).toFixed(1)} %`,
    share >= MASKED_SHARE,
  );
  options.promises.check(
    `one bound among ${STREAMS} costs the others at most ${100 * NEIGHBOUR_COST} %: ${(100 * cost).toFixed(1)} %`,
    cost <= NEIGHBOUR_COST,
  );
}

/** What a schema that was seen before adds to a request of one token. */
async function knownSchema(url: string, prompts: Prompts, options: BenchOptions): Promise<void> {
  const response_format = { type: "json_schema", json_schema: { name: "x", schema: SCHEMA } };
  const plain: number[] = [];
  const known: number[] = [];
  for (let left = options.quick ? 60 : 320; left > 0; left--) {
    const [a, b] = [await prompts.next(PROMPT_TOKENS), await prompts.next(PROMPT_TOKENS)];
    const free = await streamCompletion(url, body(a.text, 1));
    const withSchema = await streamCompletion(url, { ...body(b.text, 1), response_format });
    if (left <= (options.quick ? 40 : 300)) {
      plain.push(free.endMs);
      known.push(withSchema.endMs);
    }
  }
  const added = summary(known).p50 - summary(plain).p50;
  print({
    title: "A schema that was seen before",
    machine: machineLine({ isa: options.backend, threads: 0 }),
    workload: `${PROMPT_TOKENS} prompt tokens, one generated, ${plain.length} requests each by turns, one at a time`,
    rows: [
      ["milliseconds to the end", "median (least..most)"],
      ["no schema", spread(summary(plain), 2)],
      ["a known schema", spread(summary(known), 2)],
      ["added at the median", added.toFixed(2)],
    ],
    notMeasured: "a schema's first request, which compiles it in the gateway and on the rank.",
  });
  options.promises.check(
    `a known schema adds at most ${KNOWN_SCHEMA_MS} ms: ${added.toFixed(2)} ms`,
    added <= KNOWN_SCHEMA_MS,
  );
}
