import { setTimeout as sleep } from "node:timers/promises";
import { systemClock } from "#service/clock.ts";
import { openLoop } from "../../control-plane/load/load-request.ts";
import { runLoad } from "../../control-plane/load/load-run.ts";
import { type LoadTarget, streamOne } from "../../control-plane/load/stream-one.ts";
import { collectGarbage } from "./collect-garbage.ts";
import { bareServer, GatewayGround, type Pace, type Server } from "./gateway/ground.ts";
import { OpenStream } from "./gateway/open-stream.ts";
import type { BenchOptions } from "./options.ts";
import { cpuBetween, cpuTime, memoryOf } from "./processes.ts";
import { machineLine, print, spread, summary } from "./report.ts";

/** Streams whose CPU time is measured, and what a token of them may cost: microseconds, and times the bare server's. */
const STREAMS = 64;
const TOKEN_US = 9;
const TIMES_BARE = 2;
/** Streams beside which first tokens are measured, and what the gateway may add to them. */
const BUSY_STREAMS = 500;
const FIRST_P50_MS = 1;
const FIRST_P99_MS = 5;
const IDLE_STREAMS = 5_000;
const IDLE_MIB = 250;
const LONG_PROMPT_TOKENS = 100_000;
const DELAY_MS = 10;
const JAIN = 0.95;
/** Connections opened at once: more of them overflow the server's backlog. */
const TOGETHER = 100;

/** One event per token: steps that follow faster share events. */
const STEADY: Pace = { prefillMs: 1, stepMs: 20, slots: 512 };
const BUSY: Pace = { prefillMs: 1, stepMs: 40, slots: 512 };
/** As good as no token after the first. */
const IDLE: Pace = { prefillMs: 0, stepMs: 600_000, slots: 8_192 };
const SCARCE: Pace = { prefillMs: 1, stepMs: 5, slots: 8 };

/** What the gateway costs beside a model that costs nothing, and how it shares it out. */
export async function benchGateway(options: BenchOptions): Promise<void> {
  await using ground = await GatewayGround.open();
  await tokens(ground, options);
  await firstTokens(ground, options);
  await longPrompts(ground, options);
  await idle(ground, options);
  await fairness(ground, options);
}

const machine = () => machineLine({ isa: "simulated", threads: 0 });
const ask = (tokens: number, content = "How do you do?") => ({
  ...{ model: "nano", messages: [{ role: "user", content }] },
  ...{ max_tokens: tokens, ignore_eos: true },
});

/** Opens streams and waits for the first event of each. */
async function open(url: string, key: string, count: number, tokens: number): Promise<readonly OpenStream[]> {
  const streams: OpenStream[] = [];
  while (streams.length < count) {
    const some = Array.from(
      { length: Math.min(TOGETHER, count - streams.length) },
      (_, i) => new OpenStream(url, key, ask(tokens, `How do you do, number ${streams.length + i}?`)),
    );
    await Promise.all(some.map((stream) => stream.first));
    streams.push(...some);
  }
  return streams;
}

/** CPU time of a server per event it sends, microseconds. */
async function eventCost(server: Server, key: string, seconds: number, stepMs: number): Promise<number> {
  const streams = await open(server.url, key, STREAMS, Math.ceil((1000 * (seconds + 3)) / stepMs));
  try {
    const sent = () => streams.reduce((sum, { events }) => sum + events, 0);
    const processes = [{ pid: server.pid, name: "control plane" }] as const;
    await sleep(1_000);
    const [cpuBefore, before] = [cpuTime(processes), sent()];
    await sleep(1_000 * seconds);
    const [cpuAfter, after] = [cpuTime(processes), sent()];
    const ms = cpuBetween(cpuBefore, cpuAfter).byProcess.get("control plane")!;
    return (1000 * ms) / (after - before);
  } finally {
    for (const stream of streams) stream.close();
  }
}

async function tokens(ground: GatewayGround, options: BenchOptions): Promise<void> {
  const gateway = await ground.gateway();
  const workers = await ground.workers(STEADY);
  const bare = await bareServer(STEADY);
  try {
    const rounds = { bare: [] as number[], gateway: [] as number[] };
    for (let round = -1; round < (options.quick ? 2 : 5); round++) {
      const seconds = options.quick ? 3 : 6;
      const [a, b] = [
        await eventCost(bare, "none", seconds, STEADY.stepMs),
        await eventCost(gateway, ground.keys.one, seconds, STEADY.stepMs),
      ];
      if (round < 0) continue;
      rounds.bare.push(a);
      rounds.gateway.push(b);
    }
    const ours = summary(rounds.gateway).p50;
    const times = summary(rounds.gateway.map((cost, i) => cost / rounds.bare[i]!)).p50;
    print({
      title: "CPU time of a streamed token",
      machine: machine(),
      workload: `${STREAMS} chat streams, a token each ${STEADY.stepMs} ms; keys, limits, ledger, metrics and traces of 1 % on; by turns`,
      rows: [
        ["microseconds", "median (least..most)"],
        ["bare fastify server", spread(summary(rounds.bare), 1)],
        ["gateway", spread(summary(rounds.gateway), 1)],
        ["gateway / bare", times.toFixed(2)],
      ],
      notMeasured: "the bus and the workers, which are processes of their own.",
    });
    options.promises.check(`a token costs at most ${TOKEN_US} us: ${ours.toFixed(1)} us`, ours <= TOKEN_US);
    options.promises.check(
      `a token costs at most ${TIMES_BARE} times the bare server's: ${times.toFixed(2)}`,
      times <= TIMES_BARE,
    );
  } finally {
    await Promise.all([gateway.stop(), workers.stop(), bare.stop()]);
  }
}

/** Times to the first token beside busy streams, milliseconds. */
async function firstTimes(server: Server, key: string, requests: number): Promise<readonly number[]> {
  const target: LoadTarget = { url: server.url, model: "nano", apiKey: key, exact: true };
  const perSecond = 20;
  const lastMs = (1000 * requests) / perSecond + 10_000;
  const streams = await open(server.url, key, BUSY_STREAMS - 10, Math.ceil(lastMs / BUSY.stepMs));
  try {
    const { observations } = await runLoad({
      ...{ target, clock: systemClock, clients: 10, requestMs: 30_000, onProgress: () => {} },
      requests: openLoop({ requests, promptTokens: 20, maxTokens: 2 }, perSecond, "first"),
    });
    const failed = observations.find(({ error }) => error !== null);
    if (failed !== undefined) throw new Error(failed.error!);
    return observations.map(({ ttftMs }) => ttftMs!);
  } finally {
    for (const stream of streams) stream.close();
  }
}

async function firstTokens(ground: GatewayGround, options: BenchOptions): Promise<void> {
  const gateway = await ground.gateway();
  const workers = await ground.workers(BUSY);
  const bare = await bareServer(BUSY);
  try {
    const requests = options.quick ? 100 : 300;
    await firstTimes(gateway, ground.keys.one, 20);
    const times = {
      bare: await firstTimes(bare, "none", requests),
      gateway: await firstTimes(gateway, ground.keys.one, requests),
    };
    const at = (list: readonly number[], share: number) =>
      list.toSorted((a, b) => a - b)[Math.floor(share * list.length)]!;
    const row = (name: string, list: readonly number[]) => [
      name,
      ...[0.5, 0.9, 0.99].map((q) => at(list, q).toFixed(2)),
    ];
    const added = (share: number) => at(times.gateway, share) - at(times.bare, share);
    print({
      title: "Time to the first token",
      machine: machine(),
      workload: `${BUSY_STREAMS} streams, a token each ${BUSY.stepMs} ms; ${requests} requests at random times beside them, whose prompt takes ${BUSY.prefillMs} ms`,
      rows: [
        ["milliseconds", "p50", "p90", "p99"],
        row("bare fastify server", times.bare),
        row("gateway, bus and workers", times.gateway),
        ["added", ...[0.5, 0.9, 0.99].map((share) => added(share).toFixed(2))],
      ],
      notMeasured: "the client's own time, which is in both rows.",
    });
    for (const [share, most] of [
      [0.5, FIRST_P50_MS],
      [0.99, FIRST_P99_MS],
    ] as const) {
      const ms = added(share);
      options.promises.check(`p${100 * share} of what is added is at most ${most} ms: ${ms.toFixed(2)} ms`, ms <= most);
    }
  } finally {
    await Promise.all([gateway.stop(), workers.stop(), bare.stop()]);
  }
}

/** What a long prompt costs the streams beside it: the longest silence of any of them, with and without. */
async function longPrompts(ground: GatewayGround, options: BenchOptions): Promise<void> {
  const gateway = await ground.gateway();
  const workers = await ground.workers(STEADY);
  const rounds = options.quick ? 5 : 15;
  const streams = await open(gateway.url, ground.keys.one, STREAMS, 3_000);
  try {
    const longest = async (during: () => Promise<unknown>) => {
      for (const stream of streams) stream.watch();
      await Promise.all([during(), sleep(500)]);
      return Math.max(...streams.map(({ longestMs }) => longestMs));
    };
    const without: number[] = [];
    const beside: number[] = [];
    let tokens = 0;
    for (let round = -2; round < rounds; round++) {
      const text = longText(round);
      const a = await longest(() => sleep(500));
      const b = await longest(async () => {
        tokens = await promptTokens(gateway.url, ground.keys.one, text);
      });
      if (round < 0) continue;
      without.push(a);
      beside.push(b);
    }
    const delay = summary(beside).p50 - summary(without).p50;
    print({
      title: "Streams beside a long prompt",
      machine: machine(),
      workload: `${STREAMS} streams, a token each ${STEADY.stepMs} ms; the longest silence of any of them within half a second, with a prompt of ${tokens} tokens and without, ${rounds} times`,
      rows: [
        ["milliseconds", "median (least..most)"],
        ["no prompt", spread(summary(without), 1)],
        ["beside the prompt", spread(summary(beside), 1)],
        ["delay at the median", delay.toFixed(1)],
      ],
      notMeasured: "a machine whose cores are all busy.",
    });
    options.promises.check(
      `a prompt of ${LONG_PROMPT_TOKENS} tokens delays others by at most ${DELAY_MS} ms: ${delay.toFixed(1)} ms`,
      delay <= DELAY_MS && tokens >= LONG_PROMPT_TOKENS,
    );
  } finally {
    for (const stream of streams) stream.close();
    await Promise.all([gateway.stop(), workers.stop()]);
  }
}

/** Text of somewhat more than LONG_PROMPT_TOKENS tokens; another one for each number. */
function longText(number: number): string {
  const words: string[] = [];
  for (let i = 0; i < LONG_PROMPT_TOKENS * 0.22; i++) words.push(`w${(i * 7919 + number * 104_729) % 90_001}`);
  return words.join(" ");
}

async function promptTokens(url: string, key: string, content: string): Promise<number> {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
    body: JSON.stringify(ask(1, content)),
  });
  const answer = (await response.json()) as { readonly usage?: { readonly prompt_tokens: number } };
  if (answer.usage === undefined) throw new Error(JSON.stringify(answer));
  return answer.usage.prompt_tokens;
}

async function idle(ground: GatewayGround, options: BenchOptions): Promise<void> {
  const count = options.quick ? 1_000 : IDLE_STREAMS;
  const gateway = await ground.gateway();
  const workers = await ground.workers(IDLE);
  let streams: readonly OpenStream[] = [];
  const resident = () => memoryOf(gateway.pid).resident / 1_048_576;
  try {
    const before = resident();
    streams = await open(gateway.url, ground.keys.one, count, 1_000);
    await sleep(5_000);
    const after = resident();
    await collectGarbage(gateway.pid);
    const kept = resident();
    print({
      title: `${count} streams that wait for their next token`,
      machine: machine(),
      workload: "a connection each; the first token was told",
      rows: [
        ["gateway, resident MiB", "none", `${count} streams`, "garbage collected"],
        ["", before.toFixed(0), after.toFixed(0), kept.toFixed(0)],
      ],
      notMeasured: "the kernel's buffers of the connections.",
    });
    options.promises.check(`${count} idle streams in at most ${IDLE_MIB} MiB: ${after.toFixed(0)}`, after <= IDLE_MIB);
  } finally {
    for (const stream of streams) stream.close();
    await Promise.all([gateway.stop(), workers.stop()]);
  }
}

async function fairness(ground: GatewayGround, options: BenchOptions): Promise<void> {
  const gateway = await ground.gateway();
  const workers = await ground.workers(SCARCE);
  const seconds = options.quick ? 5 : 20;
  try {
    const endMs = performance.now() + 1000 * seconds;
    /** Tokens that a tenant is served whose clients each ask again as soon as they are answered. */
    const served = async (key: string, clients: number): Promise<number> => {
      const target: LoadTarget = { url: gateway.url, model: "nano", apiKey: key, exact: true };
      let tokens = 0;
      const client = async (_: unknown, number: number): Promise<void> => {
        for (let i = 0; performance.now() < endMs; i++) {
          const request = { prompt: `Number ${number}, question ${i}`, maxTokens: 20 };
          const answer = await streamOne(target, request, systemClock, 0, AbortSignal.timeout(60_000));
          if (answer.error !== null) throw new Error(answer.error);
          if (performance.now() < endMs) tokens += answer.promptTokens + answer.tokens;
        }
      };
      await Promise.all(Array.from({ length: clients }, client));
      return tokens;
    };
    const [many, few] = await Promise.all([served(ground.keys.one, 160), served(ground.keys.two, 16)]);
    const jain = (many! + few!) ** 2 / (2 * (many! ** 2 + few! ** 2));
    print({
      title: "Two equal tenants, one of which asks ten times as much",
      machine: machine(),
      workload: `160 clients against 16, room for ${SCARCE.slots} streams, ${seconds} s`,
      rows: [
        ["tokens served", "160 clients", "16 clients", "Jain's index"],
        ["", String(many), String(few), jain.toFixed(3)],
      ],
      notMeasured: "requests under way at the end.",
    });
    options.promises.check(`Jain's index at least ${JAIN}: ${jain.toFixed(3)}`, jain >= JAIN);
  } finally {
    await Promise.all([gateway.stop(), workers.stop()]);
  }
}
