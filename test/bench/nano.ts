import { join } from "node:path";
import { nanoModel } from "../support/dialogues.ts";
import { type System, startSystem } from "../support/system.ts";
import { EngineAlone } from "./engine-alone.ts";
import { closeConnections, streamCompletion } from "./http-stream.ts";
import type { BenchOptions } from "./options.ts";
import { aroundEngine, type CpuTime, cpuBetween, cpuTime, processTree } from "./processes.ts";
import { Prompts } from "./prompts.ts";
import { machineLine, print, spread, summary } from "./report.ts";

const PROMPT_TOKENS = 100;
const STREAM_TOKENS = 300;
const EARLY_REQUESTS = 50;
const WARM_REQUESTS = 2_000;
/** Promised: what everything around the engine may cost. */
const FIRST_TOKEN_OVERHEAD_MS = 3;
const CPU_PER_TOKEN_US = 40;
const IDLE_MS = 10_000;

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** One prefill and one decode process, threads as by default. */
export async function benchNano(options: BenchOptions): Promise<void> {
  const system = await startSystem({
    MARGAY_BACKEND: options.backend,
    MARGAY_THREADS: "0",
    MARGAY_LOG_LEVEL: "warn",
  });
  try {
    await Promise.all([system.ready("prefill", 1), system.ready("decode", 1)]);
    const settings = { backend: options.backend, threads: 0, packedFolder: join(system.stateFolder, "packed") };
    const prompts = new Prompts(options.quick ? 1 : Math.floor(performance.timeOrigin));
    {
      await using alone = await EngineAlone.open("prefill", settings);
      await firstToken(system, alone, prompts, options);
    }
    {
      await using alone = await EngineAlone.open("decode", settings);
      await throughput(system, alone, prompts, 1, options);
      await throughput(system, alone, prompts, 16, options);
    }
    await idle(system, options);
  } finally {
    closeConnections();
    await system.stop();
  }
}

const bodyOf = (prompt: string, tokens: number) => ({
  model: "nano",
  prompt,
  temperature: 0,
  max_tokens: tokens,
  min_tokens: tokens,
});

/**
 * The same fresh prompt, by turns, to the engine alone and over HTTP, of processes that have served for a while: the first
 * hundreds of requests run JavaScript that is not compiled yet, and have a row of their own.
 */
async function firstToken(system: System, alone: EngineAlone, prompts: Prompts, options: BenchOptions): Promise<void> {
  const { tokenizer } = await nanoModel();
  const wanted = options.quick ? 20 : 200;
  const early: number[] = [];
  while (early.length < EARLY_REQUESTS) early.push((await firstOverHttp(system, prompts)).firstMs);
  for (let left = options.quick ? 100 : WARM_REQUESTS; left > 0; left--) await firstOverHttp(system, prompts);
  const engine: number[] = [];
  const http: number[] = [];
  for (let warm = 20; http.length < wanted; ) {
    const { text, tokens } = await prompts.next(PROMPT_TOKENS);
    const run = await alone.generate([tokens], 1);
    // A first token that is half a character shows only with the next one.
    if (tokenizer.wholeText(run.first[0]!) === null || tokenizer.wholeText(run.first[0]!) === "") continue;
    const streamed = await streamCompletion(system.url, bodyOf(text, 4));
    if (warm-- > 0) continue;
    engine.push(run.firstMs[0]!);
    http.push(streamed.firstMs);
  }
  const around = http.map((ms, i) => ms - engine[i]!);
  const row = (name: string, samples: readonly number[]) => {
    const { p50, p95, least, most } = summary(samples);
    return [name, ...[p50, p95, least, most].map((ms) => ms.toFixed(2))];
  };
  print({
    title: "Time to first token of a lone request",
    machine: machineLine(alone.engine.info),
    workload: `${PROMPT_TOKENS} prompt tokens, a fresh prompt each time, ${wanted} samples each, engine and HTTP by turns, after ${WARM_REQUESTS} requests`,
    rows: [
      ["milliseconds", "p50", "p95", "least", "most"],
      row("engine alone", engine),
      row("HTTP request to first token", http),
      row("around the engine", around),
      row(`HTTP, the first ${EARLY_REQUESTS} requests`, early),
    ],
    notMeasured:
      "opening a connection (kept alive), a chat template, cold caches of the processor. The client shares the cores.",
  });
  const { p50 } = summary(around);
  options.promises.check(
    `around the engine at most ${FIRST_TOKEN_OVERHEAD_MS} ms of the first token (p50): ${p50.toFixed(2)} ms`,
    p50 <= FIRST_TOKEN_OVERHEAD_MS,
  );
}

async function firstOverHttp(system: System, prompts: Prompts) {
  const { text } = await prompts.next(PROMPT_TOKENS);
  return streamCompletion(system.url, bodyOf(text, 4));
}

/** The same batch, by turns, through the engine alone and over HTTP; and what the processes around the engine spend. */
async function throughput(
  system: System,
  alone: EngineAlone,
  prompts: Prompts,
  streams: number,
  options: BenchOptions,
): Promise<void> {
  const rounds = options.quick ? 2 : 7;
  const engine: number[] = [];
  const http: number[] = [];
  const spent: CpuTime[] = [];
  const perToken: number[] = [];
  for (let round = -2; round < rounds; round++) {
    const batch = await Promise.all(Array.from({ length: streams }, () => prompts.next(PROMPT_TOKENS)));
    const tokens = streams * STREAM_TOKENS;
    const run = await alone.generate(
      batch.map((prompt) => prompt.tokens),
      STREAM_TOKENS,
    );
    const before = cpuTime(processTree(system.pid));
    const startMs = performance.now();
    const answers = await Promise.all(
      batch.map(({ text }) => streamCompletion(system.url, bodyOf(text, STREAM_TOKENS))),
    );
    const endMs = performance.now();
    const cpu = cpuBetween(before, cpuTime(processTree(system.pid)));
    if (answers.some((answer) => answer.tokens !== STREAM_TOKENS)) throw new Error("a stream ended early");
    if (round < 0) continue;
    engine.push((1000 * tokens) / run.endMs);
    http.push((1000 * tokens) / (endMs - startMs));
    spent.push(cpu);
    perToken.push((1000 * aroundEngine(cpu)) / tokens);
  }
  const row = (name: string, samples: readonly number[], digits: number) => [name, spread(summary(samples), digits)];
  const each = (of: (cpu: CpuTime) => number) => spent.map((cpu) => (1000 * of(cpu)) / (streams * STREAM_TOKENS));
  const names = [...new Set(spent.flatMap((cpu) => [...cpu.byProcess.keys()]))];
  const processRows = names.map((name) =>
    row(
      `  of it: ${name}`,
      each((cpu) => cpu.byProcess.get(name) ?? 0),
      1,
    ),
  );
  print({
    title: `${streams} stream${streams === 1 ? "" : "s"}`,
    machine: machineLine(alone.engine.info),
    workload: `${PROMPT_TOKENS} prompt tokens, ${STREAM_TOKENS} generated greedily, all streams begin together; ${rounds} rounds, engine and HTTP by turns`,
    rows: [
      ["", "median (least..most)"],
      row("engine alone, tokens/s", engine, 0),
      row("over HTTP, tokens/s", http, 0),
      row("CPU around the engine, us/token", perToken, 1),
      ...processRows,
      row(
        "CPU of the engine's threads, us/token",
        each((cpu) => cpu.engine),
        1,
      ),
    ],
    notMeasured:
      "the client's own CPU time, which the cores lack. tokens/s include prompts and transfers; the engine alone moves no KV.",
  });
  if (streams < 16) return;
  const { p50 } = summary(perToken);
  options.promises.check(
    `at most ${CPU_PER_TOKEN_US} us of CPU per streamed token outside the engine's threads: ${p50.toFixed(1)} us`,
    p50 <= CPU_PER_TOKEN_US,
  );
}

/** What a system costs that has nothing to do. */
async function idle(system: System, options: BenchOptions): Promise<void> {
  await pause(2_000);
  const processes = processTree(system.pid);
  const before = cpuTime(processes);
  const startMs = performance.now();
  await pause(options.quick ? 3_000 : IDLE_MS);
  const tookMs = performance.now() - startMs;
  const { byProcess, engine } = cpuBetween(before, cpuTime(processes));
  const share = (ms: number) => `${((100 * ms) / tookMs).toFixed(2)} %`;
  print({
    title: "CPU of an idle system, of one core",
    machine: machineLine({ isa: options.backend, threads: 0 }),
    workload: `one prefill and one decode process, no request for ${Math.round(tookMs / 1000)} s`,
    rows: [
      ["", "of one core"],
      ...[...byProcess].map(([name, ms]) => [name, share(ms)]),
      ["engine threads", share(engine)],
      ["all", share(aroundEngine({ byProcess, engine }) + engine)],
    ],
    notMeasured: "wake-ups of the processor, energy.",
  });
}
